"""What was asked about, what was kept of it, and the scores: pictures, or the frames of a clip side by side.

Dims: F frames, N patches of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastervlm.eval.overlay import patches_of
from fastervlm.eval.subject import Subject
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.inllm.trace import TokenTrace
from fastervlm.overlays import Layers, layers, tiles_in_order
from fastervlm.selection.trace import ImageTrace

DRAWN = 480  # pixels, the longer side
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Patches:
    """The patches of one crop, frame or picture, row by row.

    Attributes:
        box: left, top, right and bottom of where they are drawn, as parts of the drawing; a crop may reach beyond it.
        grid: rows and columns.
        scores: of each.
        ranks: of each, 1 for the highest score, the earlier of equals first.
        ranked: how many patches the ranks count.
        kept: the numbers of those that were kept, ascending.
    """

    box: Box
    grid: tuple[int, int]
    scores: tuple[float, ...]
    ranks: tuple[int, ...]
    ranked: int
    kept: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is drawn of an answer: the layers, and the patches that lie under each of `layers.kept`."""

    layers: Layers
    patches: tuple[tuple[Patches, ...], ...]


def draw_picture(picture: Image.Image, trace: Any, subject: Subject) -> Drawn:
    """That of a picture, as the processor got it."""
    pooled = isinstance(trace, TokenTrace)
    trace = patches_of(trace, picture, subject) if pooled else trace
    drawn = layers(picture, trace, side=DRAWN)
    if isinstance(trace, Sequence):
        return Drawn(drawn, _of_tiles(tiles_in_order(trace), picture))
    crops = getattr(trace, "crops", None)
    if crops is None:
        return Drawn(drawn, (_patches([trace], [(0.0, 0.0, 1.0, 1.0)], pooled),))
    width, height = picture.size
    boxes = [(left / width, top / height, right / width, bottom / height) for left, top, right, bottom in _regions(trace)]
    patches = _patches(crops, boxes, pooled)
    return Drawn(drawn, (patches[:1], patches[1:] or patches[:1]))


def _of_tiles(tiles: Sequence[ImageTrace], picture: Image.Image) -> tuple[tuple[Patches, ...], ...]:
    """The patches of the whole picture, and those of its tiles."""
    wide, high = picture.size
    regions = [tile.region((high, wide)) for tile in tiles]
    boxes: list[Box] = [(left / wide, top / high, right / wide, bottom / high) for left, top, right, bottom in regions]
    patches = _patches(tiles, boxes, False)
    return patches[-1:], patches[:-1]


def draw_clip(frames: np.ndarray, trace: ClipTrace | TokenTrace, tokens: int) -> Drawn:
    """That of frames (F, H, W, 3) uint8 with N = `tokens`, in a square of rows; the middle of each, as the model sees it."""
    scores, mask = _of_frames(trace, len(frames), tokens)
    rows, side = math.ceil(math.sqrt(len(frames))), math.isqrt(tokens)
    size = DRAWN // rows
    board = Image.new("RGB", (rows * size, rows * size))
    worth = torch.full((rows, rows, side, side), float(scores.min()))
    kept = torch.zeros(rows, rows, side, side, dtype=torch.bool)
    boxes: list[Box] = []
    for i, frame in enumerate(frames):
        row, column = divmod(i, rows)
        board.paste(ImageOps.fit(Image.fromarray(frame), (size, size)), (column * size, row * size))
        worth[row, column], kept[row, column] = scores[i].view(side, side), mask[i].view(side, side)
        boxes.append((column / rows, row / rows, (column + 1) / rows, (row + 1) / rows))
    whole = [values.transpose(1, 2).reshape(rows * side, rows * side) for values in (worth, kept)]
    drawn = ImageTrace(whole[0].flatten(), whole[1].flatten().nonzero().flatten(), (rows * side, rows * side))
    own = [ImageTrace(scores[i], mask[i].nonzero().flatten(), (side, side)) for i in range(len(frames))]
    return Drawn(layers(board, drawn, side=DRAWN), (_patches(own, boxes, isinstance(trace, TokenTrace)),))


def _regions(trace: Any) -> list[Box]:
    """Where each crop lies, in pixels of the picture."""
    return [tuple(region) for region in trace.cut.regions().tolist()]


def _patches(traces: Sequence[ImageTrace], boxes: Sequence[Box], pooled: bool) -> tuple[Patches, ...]:
    """The patches of each trace; ranks count those of all, if `pooled`."""
    scores = [trace.scores.float().cpu() for trace in traces]
    ranks = _ranks(torch.cat(scores)).split([len(each) for each in scores]) if pooled else [_ranks(each) for each in scores]
    ranked = sum(map(len, scores)) if pooled else 0
    return tuple(
        Patches(box, trace.grid, tuple(s.tolist()), tuple(r.tolist()), ranked or len(s), tuple(trace.index.tolist()))
        for box, trace, s, r in zip(boxes, traces, scores, ranks, strict=True)
    )


def _ranks(scores: Tensor) -> Tensor:
    """(N,) from 1."""
    order = scores.argsort(descending=True, stable=True)
    return torch.empty_like(order).index_copy(0, order, torch.arange(1, len(scores) + 1))


def _of_frames(trace: ClipTrace | TokenTrace, frames: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Scores (F, N) and mask (F, N) of the patches; inside the language model each frame has its [CLS] in front."""
    if isinstance(trace, ClipTrace):
        return trace.scores.float().cpu(), trace.mask.cpu()
    mask = torch.zeros(frames * (1 + tokens), dtype=torch.bool)
    mask[trace.index.cpu()] = True
    scores = trace.scores.float().cpu().clamp(min=0)
    return scores.view(frames, -1)[:, 1:], mask.view(frames, -1)[:, 1:]
