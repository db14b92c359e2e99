"""The picture of what a method inside the language model kept."""

from typing import Any

import pytest
import torch
from PIL import Image

import fastervlm
from fastervlm.eval.overlay import patches_of, save_overlay
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.inllm.trace import TokenTrace
from tests.support import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model):
    """Folders of the tiny models."""
    crops = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny.llava_next().save_pretrained(crops)
    tiny.next_processor().save_pretrained(crops)
    return {"llava": model, "native": crops, "paper": crops}


@pytest.mark.parametrize("method", [fastervlm.FastV(layer=1), "simignore"])
@pytest.mark.parametrize("name", ["llava", "native", "paper"])
def test_overlay_is_drawn(folders, settings, bench, tmp_path, name, method):
    subject = Subject(str(folders[name]), anyres=Anyres() if name == "llava" else Anyres(name))
    save_overlay(subject, settings(method=method), tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as drawn:
        assert 672 in drawn.size or min(drawn.size) > 600


@pytest.mark.parametrize("name", ["native", "paper"])
def test_tokens_are_the_patches_that_the_layout_puts_there(folders, name):
    """Against what pruning before the language model says of the same picture: all tokens, then every third."""
    subject = Subject(str(folders[name]), anyres=Anyres(name))
    picture = Image.effect_noise((50, 31), 90).convert("RGB")
    inputs = subject.processor(images=picture, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    with fastervlm.prune(subject.model, 1.0, anyres=name) as handle:
        subject.model.generate(**inputs, max_new_tokens=1)
    before = handle.trace[0]
    number = before.num_tokens
    index = torch.arange(0, number, 3)
    shown: Any = patches_of(TokenTrace(torch.arange(number) - 2.0, index, 2), picture, subject)
    assert torch.equal(shown.tokens, before.tokens[::3])
    assert shown.cut == before.cut
    assert (shown.scores.shape, shown.mask.shape) == (before.scores.shape, before.mask.shape)
    patches = [(token, place) for place, token in enumerate(before.tokens.tolist()) if token >= 0]
    for token, place in patches:
        assert shown.scores.flatten()[token] == max(place - 2, 0)
        assert shown.mask.flatten()[token] == (place % 3 == 0)
    assert shown.mask.sum() == sum(place % 3 == 0 for _, place in patches)


def test_tokens_of_one_square_picture_are_its_patches(folders):
    kept = TokenTrace(torch.arange(16) - 1.0, torch.tensor([0, 5]), 2)
    shown: Any = patches_of(kept, Image.new("RGB", (9, 9)), Subject(str(folders["llava"])))
    assert shown.mask.nonzero().tolist() == [[0, 0], [1, 1]]
    assert shown.scores.tolist() == [0, *range(15)]
