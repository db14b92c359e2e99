"""What is drawn of the families whose grids cover whole pictures, or parts that nothing tells."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Idefics3ImageProcessor, PerceptionLMImageProcessor
from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas as cohere2_canvas
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

import fastervlm
from encoders import UserError
from fastervlm.overlays import layers
from fastervlm.selection.tile_grids import fitted, shorter_side_covered, stretched_least, tile_grid
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
    ("name", "shows"),
    [("internvl", "whole"), ("qwen2 pictures", "whole"), ("onevision clips", "whole"), ("vipllava", "square")],
)
@torch.no_grad()
def test_each_family_says_what_its_grid_covers(name, shows):
    case = CASES[name]
    model = family_cases.random(case.make)
    with fastervlm.prune(model, 2) as handle:
        model(**prompt(case, model, [[0]]))
    trace = getattr(handle.trace[0], "frames", handle.trace)[0]
    assert trace.shows == shows
    assert trace.boxes((40, 60)).shape == (trace.num_tokens, 4)
    assert fastervlm.overlay(Image.new("RGB", (60, 40)), trace, side=64).width >= 64


def test_what_nothing_tells_is_refused():
    trace = ImageTrace(torch.ones(4) / 4, torch.tensor([0]), (2, 2), shows="part")
    for use in (lambda: trace.boxes((40, 40)), lambda: fastervlm.overlay(Image.new("RGB", (40, 40)), trace)):
        with pytest.raises(UserError, match="Nothing tells which part of the picture") as caught:
            use()
        one_sentence(caught.value)


@pytest.mark.parametrize("size", [(448, 448), (300, 900), (900, 300), (600, 800), (1000, 700), (333, 1000), (2000, 1999)])
def test_tiles_stand_as_the_processor_of_transformers_cuts_them(size):
    for most in (4, 6, 12):
        columns, rows = get_optimal_tiled_canvas(size, (448, 448), 1, most)
        assert tile_grid(rows * columns, size) == (rows, columns)


SIZES = [(448, 448), (300, 900), (900, 300), (600, 800), (1000, 700), (333, 1000), (1000, 1050), (2000, 1999), (97, 101)]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_other_processors_stand_as_they_cut_them(size):
    high, wide = size
    for most in (3, 6, 12):
        columns, rows = cohere2_canvas(size, (200, 200), 1, most)
        assert stretched_least(rows * columns, size, 200) == (rows, columns)
        perception = PerceptionLMImageProcessor(max_num_tiles=most)
        fits = perception._fit_image_to_canvas(wide, high, 200)
        columns, rows = fits or perception._find_closest_aspect_ratio(wide, high, 200)
        assert fitted(rows * columns, size, 200) == (rows, columns)
    picture = Image.new("RGB", (wide, high))
    for longest in (1, 2, 4):
        splits: Any = Idefics3ImageProcessor(size={"longest_edge": 64 * longest}, max_image_size={"longest_edge": 64})
        rows, columns = (told[0][0] for told in map(splits([picture], return_row_col_info=True).get, ("rows", "cols")))
        if rows:
            assert shorter_side_covered(rows * columns, size) == (rows, columns)


def test_boxes_of_tokens_by_hand():
    scores, index = torch.ones(4) / 4, torch.tensor([0, 3])
    size = (40, 120)  # three tiles side by side, and the whole once more
    boxes = [ImageTrace(scores, index, (2, 2), shows="part", tile=(n, 4)).boxes(size).tolist() for n in range(4)]
    assert boxes[1] == [[40, 0, 60, 20], [60, 20, 80, 40]]
    assert boxes[3] == [[0, 0, 60, 20], [60, 20, 120, 40]]
    assert ImageTrace(scores, index, (2, 2)).boxes(size).tolist() == [[40, 0, 60, 20], [60, 20, 80, 40]]
    assert ImageTrace(scores, index, (2, 2)).boxes(size, "pad").tolist() == [[0, -40, 60, 20], [60, 20, 120, 80]]


@torch.no_grad()
def test_the_tiles_of_a_picture_are_drawn_together():
    case = CASES["internvl"]
    model = family_cases.random(case.make)
    with fastervlm.prune(model, 1) as handle:
        model(**prompt(case, model, [[2], [0]]))
    tiles = handle.trace[:3]
    assert [trace.tile for trace in handle.trace] == [(0, 3), (1, 3), (2, 3), (0, 1)]
    drawn = layers(Image.new("RGB", (80, 40)), tiles, side=80)
    assert drawn.tokens == (1, 2)
    expected = np.zeros((40, 80))
    for trace in tiles[:2]:
        assert isinstance(trace, ImageTrace)
        ((left, top, right, bottom),) = trace.boxes((40, 80)).int().tolist()
        expected[top:bottom, left:right] = 1
    assert np.array_equal(drawn.kept[1], expected)
    assert drawn.kept[0].sum() == 40 * 80 / 4


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
    drawn = layers(Image.new("RGB", (60, 40)), handle.trace, side=60)
    trace = handle.trace[0]
    assert drawn.tokens == (trace.overview.num_tokens, trace.map.num_tokens)
    assert 0 < drawn.kept[1].mean() < 1
    assert trace.map.boxes((40, 60)).shape == (trace.map.num_tokens, 4)
