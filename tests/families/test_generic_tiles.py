"""Tiles of classes without a family of their own: of which picture they are, and where they lie in it, by their pixels."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.families.generic.family import Generic
from fastervlm.families.generic.table import SHOWN
from tests.support import family_cases
from tests.support.checks import one_sentence
from tests.support.generic_cases import CASES
from tests.support.tiny_generic import PROCESSORS

TILED = [each.class_name.removesuffix("ForConditionalGeneration") for each in SHOWN if each.tiles is not None]
SIZES = [(60, 40), (20, 20), (40, 90), (130, 50)]  # width, height


@pytest.fixture(scope="module", autouse=True)
def numbers_in_words():
    """See tests/eval/test_eval_generic.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield


def slope(size):
    """A picture whose red grows from left to right, and its green from top to bottom."""
    wide, high = size
    red, green = np.meshgrid((np.arange(wide) + 0.5) / wide, (np.arange(high) + 0.5) / high)
    return Image.fromarray((255 * np.stack((red, green, 0 * red), axis=2)).astype(np.uint8))


def ready(name, rows):
    """The inputs of prompts that show pictures of these sizes, row by row."""
    processor = PROCESSORS[name]()
    processor.tokenizer.padding_side = "left"
    asked = []
    for row in rows:
        content = [*({"type": "image"} for _ in row), {"type": "text", "text": "What?"}]
        asked.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    shown = [[slope(size) for size in row] for row in rows]
    return processor(images=shown, text=asked, padding=True, return_tensors="pt"), processor.image_processor


def tiles_of(name, inputs, images):
    """The mean red and green of each tile, from 0 to 1."""
    pixels = inputs["pixel_values"]
    if name == "Lfm2Vl":
        parts = [
            tile[mask.bool()].view(-1, 3).mean(0) for tile, mask in zip(pixels, inputs["pixel_attention_mask"], strict=True)
        ]
    else:
        tiles = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
        parts = [tile.mean((1, 2)) for tile in tiles if tile.any()]
    means = torch.stack(parts) * torch.tensor(images.image_std) + torch.tensor(images.image_mean)
    return means[:, :2]


@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_tiles_are_told_by_picture_and_lie_where_their_pixels_come_from(name):
    # PerceptionLM's processor joins pictures of equally many tiles only.
    rows = [[(60, 40), (66, 44)], [(60, 40)]] if name == "PerceptionLM" else [SIZES[:2], [], [SIZES[2]], SIZES[3:]]
    sizes = [size for row in rows for size in row]
    (inputs, images), model = ready(name, [row for row in rows if row]), family_cases.random(CASES[name].make)
    counts = [len(tiles_of(name, *ready(name, [[size]]))) for size in sizes]
    assert max(counts) > 2
    with fastervlm.prune(model, 2) as handle:
        model(**inputs)
    traces: Any = iter(handle.trace)
    means = iter(tiles_of(name, inputs, images))
    for (wide, high), count in zip(sizes, counts, strict=True):
        own = [next(traces) for _ in range(count)]
        assert sorted(trace.tile for trace in own) == [(number, count) for number in range(count)]
        for trace in own:
            left, top, right, bottom = trace.region((high, wide))
            centre = torch.tensor([(left + right) / 2 / wide, (top + bottom) / 2 / high])
            torch.testing.assert_close(next(means), centre, rtol=0, atol=0.04)
            assert trace.boxes((high, wide)).shape == (trace.num_tokens, 4)
    assert next(traces, None) is None
    own: Any = handle.trace[: counts[0]]
    assert fastervlm.overlay(slope(sizes[0]), sorted(own, key=lambda trace: trace.tile), side=64).width >= 64


@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_a_bound_is_of_all_tiles_of_a_picture(name):
    inputs, _ = ready(name, [[(60, 40), (60, 40)]])
    model = family_cases.random(CASES[name].make)
    with fastervlm.prune(model, fastervlm.AtMost(5)) as handle:
        if name == "Lfm2Vl":  # whose whole picture has another grid than its tiles
            with pytest.raises(UserError, match="tiles of several shapes, which cannot share tokens"):
                model(**inputs)
            return
        model(**inputs)
        traces: Any = handle.trace
        count = traces[0].tile[1]
        assert [sum(trace.num_tokens for trace in traces[first : first + count]) for first in (0, count)] == [5, 5]
        assert len(traces) == 2 * count
    with fastervlm.prune(model, fastervlm.Total(5), score="norm") as handle:
        model(**inputs)
        assert sum(trace.num_tokens for trace in handle.trace) == 10


@torch.no_grad()
def test_of_a_class_that_nobody_has_shown_nothing_is_of_a_whole_picture(monkeypatch):
    model = family_cases.random(CASES["AyaVision"].make)
    inputs, _ = ready("AyaVision", [[(60, 40)]])
    monkeypatch.setattr("fastervlm.families.generic.family.SHOWN", ())
    assert not Generic.of(model, type(model).__name__).shown
    with fastervlm.prune(model, fastervlm.AtMost(5)):
        with pytest.raises(UserError, match="Nothing says which tiles make up a picture of a AyaVision") as caught:
            model(**inputs)
        one_sentence(caught.value)
    with fastervlm.prune(model, 3) as handle:
        model(**inputs)
        trace: Any = handle.trace[0]
        with pytest.raises(UserError, match="Nothing tells which part of the picture"):
            trace.boxes((40, 60))
