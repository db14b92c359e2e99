"""The picture of what was kept: pixel by pixel where the mask says."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastervlm
from fastervlm import CropsTrace, ImageTrace, UserError
from fastervlm.families.llava_next.crops import CropLayout
from tests.support import plain, tiny


def trace_of(index, grid=(4, 4), scores=None):
    count = grid[0] * grid[1]
    scores = torch.linspace(0.001, 0.1, count) if scores is None else scores
    return ImageTrace(scores, torch.tensor(index), grid)


def halves(drawing):
    """Left and right picture (side, side, 3), and what is between."""
    pixels = np.asarray(drawing).astype(int)
    side = pixels.shape[0]
    return pixels[:, :side], pixels[:, -side:], pixels[:, side:-side]


@pytest.mark.parametrize("grid", [(4, 4), (3, 6), (24, 24)])
@pytest.mark.parametrize("side", [96, 672])
def test_kept_patches_are_bright_and_the_others_dim(grid, side):
    count = grid[0] * grid[1]
    index = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 3].tolist())
    image = Image.new("RGB", (50, 50), (200, 100, 40))
    left, _, gap = halves(fastervlm.overlay(image, trace_of(index, grid), side=side))
    assert (gap == 255).all()
    for patch in range(count):
        row, column = divmod(patch, grid[1])
        top, bottom = (side * row) // grid[0] + 1, (side * (row + 1)) // grid[0] - 1
        start, end = (side * column) // grid[1] + 1, (side * (column + 1)) // grid[1] - 1
        cell = left[top:bottom, start:end]
        if patch in index:
            assert (cell == [200, 100, 40]).all()
        else:
            assert (cell.max(axis=(0, 1)) < [80, 50, 40]).all()


def test_the_map_is_brightest_where_the_scores_are_highest():
    scores = torch.full((16,), 1e-4)
    scores[[2, 13]] = torch.tensor([0.3, 0.01])
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    _, right, _ = halves(fastervlm.overlay(image, trace_of([0], scores=scores), side=64))
    bright = right.sum(-1)[8::16, 8::16].flatten()
    assert bright.argmax() == 2
    assert np.argsort(bright)[-2] == 13
    assert len(set(bright[[0, 1, 7, 15]])) == 1


@pytest.mark.parametrize(
    ("size", "box"), [((90, 30), (30, 0, 60, 30)), ((30, 90), (0, 30, 30, 60)), ((31, 30), (0, 0, 30, 30))]
)
def test_crop_shows_the_middle(size, box):
    image = Image.new("RGB", size, (9, 9, 9))
    image.paste((250, 0, 0), box)
    left, _, _ = halves(fastervlm.overlay(image, trace_of(range(16)), side=96))
    assert (left == [250, 0, 0]).all()


@pytest.mark.parametrize(
    ("size", "inside"), [((90, 30), (slice(32, 64), slice(None))), ((30, 90), (slice(None), slice(32, 64)))]
)
def test_pad_shows_all_within_borders(size, inside):
    left, _, _ = halves(fastervlm.overlay(Image.new("RGB", size, (250, 0, 0)), trace_of(range(16)), fit="pad", side=96))
    assert (left[inside] == [250, 0, 0]).all()
    assert (left == [250, 0, 0]).all(-1).mean() == pytest.approx(1 / 3)


def test_the_crop_is_what_the_processor_showed_the_model():
    """The red patch of a broad picture, in the processor's own pixels and in the drawing, is the same patch."""
    image = Image.new("RGB", (128, 64), (0, 0, 0))
    image.paste((255, 0, 0), (32 + 32, 16, 32 + 48, 32))  # row 1, column 2 of the middle square
    pixels = tiny.processor()(images=[image], text="<image>", return_tensors="pt")["pixel_values"][0, 0]
    seen = pixels.unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2)).flatten()
    assert int(seen.argmax()) == 6
    left, _, _ = halves(fastervlm.overlay(image, trace_of([6]), side=64))
    assert (left[17:31, 33:47] == [255, 0, 0]).all()
    assert left[:15].max() < 30


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_every_mode(mode):
    drawing = fastervlm.overlay(Image.new(mode, (20, 30)), trace_of([0, 5]), side=96)
    assert (drawing.mode, drawing.size) == ("RGB", (2 * 96 + 2, 96))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pictures_of_every_shape(size, fit):
    assert fastervlm.overlay(Image.new("RGB", size), trace_of([3]), fit=fit, side=96).size == (194, 96)


@pytest.mark.parametrize("scores", [torch.zeros(16), torch.full((16,), 0.2), torch.rand(16).half()])
def test_scores_of_every_kind(scores):
    fastervlm.overlay(Image.new("RGB", (20, 30)), trace_of([0], scores=scores), side=96)


def test_a_trace_of_a_pruned_call_can_be_drawn():
    model, picture = tiny.llava(), plain.pictures(1)[0]
    with fastervlm.prune(model, 5) as handle:
        model(**plain.inputs(["<image>?"]))
    left, _, _ = halves(fastervlm.overlay(picture, handle.trace[0], side=96))
    means = left.reshape(4, 24, 4, 24, 3).mean((1, 3, 4)).flatten()
    assert sorted(np.argsort(means)[-5:].tolist()) == handle.trace[0].index.tolist()


def test_an_unknown_fit():
    with pytest.raises(UserError, match="fit='stretch' is not known; choose one of crop, pad"):
        fastervlm.overlay(Image.new("RGB", (9, 9)), trace_of([0]), fit="stretch")  # type: ignore[arg-type]


def test_a_trace_of_one_picture_may_be_passed_as_it_comes():
    image, trace = Image.new("RGB", (40, 40), (200, 100, 40)), trace_of([3, 5])
    assert fastervlm.overlay(image, [trace]).tobytes() == fastervlm.overlay(image, trace).tobytes()
    with pytest.raises(UserError, match="2 pictures"):
        fastervlm.overlay(image, [trace, trace])


def crops_trace(size, kept, layout="native"):
    """A picture of that size (height, width) on crops of 32 pixels and 4 x 4 patches, of which `kept` (crop, patch) stay."""
    cut = getattr(CropLayout, layout)(size, [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]], 32, 4)
    mask = torch.zeros(cut.crops, 16, dtype=torch.bool)
    for crop, patch in kept:
        mask[crop, patch] = True
    return CropsTrace(torch.rand(cut.crops, 16), mask, cut.source[cut.keep(mask.flatten(), "none")], cut, layout)


@pytest.mark.parametrize(
    ("size", "layout", "kept"),
    [
        ((64, 64), "native", [(1, 0), (4, 15), (2, 5), (0, 3)]),
        ((48, 64), "native", [(1, 9), (3, 2), (0, 0)]),
        ((48, 64), "paper", [(1, 9), (1, 0), (4, 15), (0, 15)]),
        ((30, 180), "native", [(2, 6), (3, 7), (0, 12)]),
        ((180, 30), "paper", [(1, 6), (3, 5), (0, 12)]),
    ],
)
def test_kept_patches_of_crops_are_bright_where_they_lie_in_the_picture(size, layout, kept):
    trace = crops_trace(size, kept, layout)
    image = Image.new("RGB", size[::-1], (200, 100, 40))
    drawing = np.asarray(fastervlm.overlay(image, trace, side=480)).astype(int)
    wide = size[1] > size[0]
    high = round(480 * size[0] / max(size)), round(480 * size[1] / max(size))
    assert drawing.shape[1 if wide else 0] == 480
    levels = [drawing[: high[0], : high[1]], None]
    gap = 480 // 48
    levels[1] = drawing[high[0] + gap :][: high[0]] if wide else drawing[:, high[1] + gap :][:, : high[1]]
    scale = 480 / max(size)
    for token, (left, top, right, bottom) in zip(trace.tokens.tolist(), trace.boxes.tolist(), strict=True):
        y, x = int((top + bottom) / 2 * scale), int((left + right) / 2 * scale)
        if 0 <= y < high[0] and 0 <= x < high[1]:
            assert levels[token >= 16][y, x].tolist() == [200, 100, 40]
    for level, crops in ((levels[0], {0}), (levels[1], set(range(1, trace.cut.crops)))):
        bright = (level == [200, 100, 40]).all(axis=2).mean()
        inside = [box for box, crop in zip(trace.boxes, trace.crop, strict=True) if int(crop) in crops]
        area = sum(_visible(box, size) for box in inside) / (size[0] * size[1])
        assert bright == pytest.approx(area, abs=0.02)


def _visible(box, size):
    left, top, right, bottom = box.tolist()
    return max(0, min(right, size[1]) - max(left, 0)) * max(0, min(bottom, size[0]) - max(top, 0))


@pytest.mark.parametrize("size", [(64, 48), (24, 32)])
def test_a_picture_of_another_size_than_was_cut_is_refused(size):
    with pytest.raises(UserError, match="was given one of 64 x 48"):
        fastervlm.overlay(Image.new("RGB", size[::-1] if size == (64, 48) else size), crops_trace((48, 64), [(0, 1)]))
