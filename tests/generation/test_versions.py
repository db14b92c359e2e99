"""Versions of transformers that cannot do something right are told so by name."""

import pytest
import torch

import fastervlm
from encoders import UserError
from fastervlm.generation import versions
from tests.support import tiny


def inputs():
    return tiny.processor()(images=tiny.picture(1), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")


def test_chunks_need_a_version_that_parts_ready_features(monkeypatch):
    model = tiny.llava()
    with fastervlm.prune(model, 5), torch.no_grad():
        whole = model.generate(**inputs(), max_new_tokens=3, do_sample=False)
        assert model.generate(**inputs(), max_new_tokens=3, do_sample=False, prefill_chunk_size=4).equal(whole)
        monkeypatch.setattr(versions.transformers, "__version__", "5.22.0")
        with pytest.raises(UserError, match=r"transformers 5\.22\.0 cannot read a prompt with pictures in chunks .* 5\.23"):
            model.generate(**inputs(), max_new_tokens=3, do_sample=False, prefill_chunk_size=4)
        assert model.generate(**inputs(), max_new_tokens=3, do_sample=False).equal(whole)


def test_pruning_needs_a_version_that_takes_ready_features(monkeypatch):
    monkeypatch.setattr(versions.transformers, "__version__", "5.17.0")
    with pytest.raises(UserError, match=r"transformers 5\.17\.0 cannot take the kept tokens of a picture .* 5\.18"):
        fastervlm.prune(tiny.llava(), 5)


TWO = "USER: <image> and <image>\nWhich? ASSISTANT:"
SEVERAL = [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}]


@pytest.mark.parametrize("mode", SEVERAL, ids=str)
def test_several_answers_about_several_pictures_need_a_version_that_repeats_them_in_order(monkeypatch, mode):
    """Of prompts with a picture each nothing can be mixed up."""
    model, call = tiny.llava(), {"max_new_tokens": 3, "do_sample": False, **mode}
    pictures = [tiny.picture(1), tiny.picture(2)]
    apart = tiny.processor()(images=pictures, text=["One? <image>", "Two? <image>"], return_tensors="pt")
    together = tiny.processor()(images=pictures, text=TWO, return_tensors="pt")
    monkeypatch.setattr(versions.transformers, "__version__", "5.18.0")
    with fastervlm.prune(model, 5), torch.no_grad():
        model.generate(**apart, **call)
        model.generate(**together, max_new_tokens=3, do_sample=False)
        with pytest.raises(UserError, match=r"transformers 5\.18\.0 cannot search with beams, .* several pictures .* 5\.19"):
            model.generate(**together, **call)
        monkeypatch.setattr(versions.transformers, "__version__", "5.19.0")
        model.generate(**together, **call)
