"""Versions of transformers that cannot do something right are told so by name."""

import pytest
import torch
import transformers

import fastervlm
from encoders import UserError
from tests.support import tiny


def inputs():
    return tiny.processor()(images=tiny.picture(1), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")


def test_chunks_need_a_version_that_parts_ready_features(monkeypatch):
    model = tiny.llava()
    with fastervlm.prune(model, 5), torch.no_grad():
        whole = model.generate(**inputs(), max_new_tokens=3, do_sample=False)
        assert model.generate(**inputs(), max_new_tokens=3, do_sample=False, prefill_chunk_size=4).equal(whole)
        monkeypatch.setattr(transformers, "__version__", "5.22.0")
        with pytest.raises(UserError, match=r"transformers 5\.22\.0 cannot read a prompt with pictures in chunks .* 5\.23"):
            model.generate(**inputs(), max_new_tokens=3, do_sample=False, prefill_chunk_size=4)
        assert model.generate(**inputs(), max_new_tokens=3, do_sample=False).equal(whole)


def test_pruning_needs_a_version_that_takes_ready_features(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    with pytest.raises(UserError, match=r"transformers 5\.17\.0 cannot take the kept tokens of a picture .* 5\.18"):
        fastervlm.prune(tiny.llava(), 5)
