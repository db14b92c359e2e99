"""What is drawn of the families whose grids cover whole pictures, or parts that nothing tells."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.overlays import layers
from fastervlm.selection.trace import ImageTrace
from tests.support import family_cases
from tests.support.checks import one_sentence
from tests.support.family_cases import CASES, prompt


def test_a_whole_picture_is_drawn_in_its_own_shape():
    trace = ImageTrace(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), torch.tensor([1, 5]), (2, 3), shows="whole")
    drawn = layers(Image.new("RGB", (90, 60)), trace, side=30)
    assert drawn.picture.shape == (20, 30, 3)
    expected = np.kron(np.array([[0, 1, 0], [0, 0, 1]]), np.ones((10, 10)))
    assert np.array_equal(drawn.kept[0], expected)
    assert np.array_equal(np.unique(drawn.scores[::10, ::10].argsort(axis=None)), np.arange(6))
    assert drawn.tokens == (2,)


@pytest.mark.parametrize(
    ("name", "shows"), [("internvl", "part"), ("qwen2 pictures", "whole"), ("onevision clips", "whole"), ("vipllava", "square")]
)
@torch.no_grad()
def test_each_family_says_what_its_grid_covers(name, shows):
    case = CASES[name]
    model = family_cases.random(case.make)
    with fastervlm.prune(model, 2) as handle:
        model(**prompt(case, model, [[0]]))
    trace = getattr(handle.trace[0], "frames", handle.trace)[0]
    assert trace.shows == shows
    if shows == "part":
        with pytest.raises(UserError, match="nothing tells which part of the picture") as caught:
            fastervlm.overlay(Image.new("RGB", (40, 40)), trace)
        one_sentence(caught.value)


@torch.no_grad()
def test_pictures_beside_others_and_resized_maps():
    case = CASES["onevision pictures beside others"]
    model = family_cases.random(case.make)
    with fastervlm.prune(model, 5) as handle:
        model(**prompt(case, model, [[0, 2]]))
    assert fastervlm.overlay(Image.new("RGB", (60, 40)), handle.trace[0], side=64).width >= 64
    resized = CASES["onevision pictures resized"]
    model = family_cases.random(resized.make)
    with fastervlm.prune(model, 5) as handle:
        model(**prompt(resized, model, [[0]]))
    with pytest.raises(UserError, match="cannot draw a ResizedTrace yet") as caught:
        fastervlm.overlay(Image.new("RGB", (60, 40)), handle.trace)
    one_sentence(caught.value)
