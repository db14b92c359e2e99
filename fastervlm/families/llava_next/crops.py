"""LLaVA-NeXT's crops: which grid a picture is cut into, and where the tokens of each crop stand before the language model.

A picture is scaled onto a canvas of whole crops, and an overview of the whole picture goes first. Behind the overview the
patches of the stitched canvas stand row by row, across crops. Sizes are (height, width) throughout, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Size = tuple[int, int]
NEWLINE = -1


@dataclass(frozen=True)
class CropLayout:
    """How one picture is cut, and the order of its tokens.

    Attributes:
        size: of the picture, in pixels.
        canvas: size of the canvas, in pixels; a multiple of `crop` each way.
        crop: side of a crop, in pixels.
        side: patches along the side of a crop.
        window: the patches of the canvas that take part, as (top, bottom, left, right), the second of each pair excluded.
        newlines: a newline token ends each row of the window.
    """

    size: Size
    canvas: Size
    crop: int
    side: int
    window: tuple[int, int, int, int]
    newlines: bool

    @classmethod
    def native(cls, size: Size, pinpoints: Sequence[Sequence[int]], crop: int, side: int) -> CropLayout:
        """As transformers' model does it: its grid rule, un-padding, a newline token behind each row."""
        from transformers.image_processing_utils import select_best_resolution
        from transformers.models.llava_next.modeling_llava_next import unpad_image

        canvas = tuple(select_best_resolution(size, [tuple(point) for point in pinpoints]))
        rows, columns = (length // crop * side for length in canvas)
        numbers = unpad_image(torch.arange(rows * columns).view(1, rows, columns), size)[0]
        height, width = numbers.shape
        # Padding is split evenly, so what is left lies in the middle.
        top, left = (rows - height) // 2, (columns - width) // 2
        return cls(size, canvas, crop, side, (top, top + height, left, left + width), newlines=True)

    @classmethod
    def paper(cls, size: Size, pinpoints: Sequence[Sequence[int]], crop: int, side: int) -> CropLayout:
        """As the reference implementation of FasterVLM does it: its own grid rule, padding and all, no newline."""
        canvas = paper_canvas(size, pinpoints)
        rows, columns = (length // crop * side for length in canvas)
        return cls(size, canvas, crop, side, (0, rows, 0, columns), newlines=False)

    @classmethod
    def single(cls, size: Size, crop: int, side: int) -> CropLayout:
        """A picture that is not cut: an overview alone, and one newline token behind it."""
        return cls(size, (0, 0), crop, side, (0, 0, 0, 0), newlines=True)

    @property
    def cut(self) -> bool:
        """Whether there are crops beside the overview."""
        return self.canvas != (0, 0)

    @property
    def grid(self) -> Size:
        """Rows and columns of crops, without the overview."""
        return self.canvas[0] // self.crop, self.canvas[1] // self.crop

    @property
    def crops(self) -> int:
        """How many crops the tower reads, the overview included."""
        return 1 + self.grid[0] * self.grid[1]

    @cached_property
    def source(self) -> Tensor:
        """(T,) int64: the patch behind each token, numbered crop * side ** 2 + patch; NEWLINE for a newline token."""
        (rows, columns), side = self.grid, self.side
        if not self.cut:
            return torch.cat((torch.arange(side * side), torch.full((int(self.newlines),), NEWLINE)))
        numbers = torch.arange(side * side, self.crops * side * side).view(rows, columns, side, side)
        top, bottom, left, right = self.window
        canvas = numbers.transpose(1, 2).reshape(rows * side, columns * side)[top:bottom, left:right]
        if self.newlines:
            canvas = torch.nn.functional.pad(canvas, (0, 1), value=NEWLINE)
        return torch.cat((torch.arange(side * side), canvas.flatten()))

    def keep(self, kept: Tensor, newline: str) -> Tensor:
        """(T,) bool: the tokens that stay if the patches where kept (crops * side ** 2,) is true do.

        Of the newline tokens `newline` "all" stay or "none"; or "kept", all but those whose row lost every patch it had.
        """
        device = kept.device
        source = self.source.to(device)
        keep = kept[source] & (source != NEWLINE)
        if self.newlines and newline != "none" and not self.cut:
            keep[-1] = True if newline == "all" else keep[:-1].any()
        elif self.newlines and newline != "none":
            top, bottom, left, right = self.window
            rows = keep[self.side**2 :].view(bottom - top, right - left + 1)
            rows[:, -1] = True if newline == "all" or left == right else rows[:, :-1].any(dim=1)
        return keep

    def count(self, keep: int, newline: Literal["all", "none"]) -> int:
        """How many tokens stay where each crop keeps so many patches, or all that it has."""
        (top, bottom, _, _), areas = self.window, [(low - top) * (far - near) for top, low, near, far in self.windows()]
        newlines = (bottom - top if self.cut else 1) if self.newlines and newline == "all" else 0
        return sum(min(keep, area) for area in areas) + newlines

    def windows(self) -> list[tuple[int, int, int, int]]:
        """For each crop its patches that take part, as (top, bottom, left, right); empty where it is all padding."""
        (rows, columns), side = self.grid, self.side
        top, bottom, left, right = self.window
        found = [(0, side, 0, side)]
        for row in range(rows):
            for column in range(columns):
                low, high = (_within(x - row * side, side) for x in (top, bottom))
                near, far = (_within(x - column * side, side) for x in (left, right))
                found.append((low, high, near, far))
        return found

    def attended(self, scores: Tensor) -> Tensor:
        """(crops - 1,) of the overview's scores (N,) what falls on the part of the picture that each crop shows.

        The overview is the whole picture, stretched over its patches. A patch that two crops show counts for each by its area.
        """
        (height, width), side = self.size, self.side
        boxes, steps = self.regions()[1:].to(scores), torch.arange(side + 1, device=scores.device) / side

        def covered(near: Tensor, far: Tensor, length: int) -> Tensor:
            """(crops - 1, side) the share of each row or column of patches that lies within."""
            edges = torch.maximum(torch.minimum(steps * length, far[:, None]), near[:, None])
            return edges.diff(dim=1) * (side / length)

        down, across = covered(boxes[:, 1], boxes[:, 3], height), covered(boxes[:, 0], boxes[:, 2], width)
        return torch.einsum("cy,yx,cx->c", down, scores.view(side, side), across)

    def regions(self) -> Tensor:
        """(crops, 4) float32: left, top, right, bottom of each crop in pixels of the picture; padding lies outside it."""
        (height, width), (rows, columns) = self.size, self.grid
        if not self.cut:
            return torch.tensor([[0.0, 0.0, float(width), float(height)]])
        scaled = scaled_size(self.size, self.canvas)
        unit = height / scaled[0], width / scaled[1]
        paste = [(whole - part) // 2 for whole, part in zip(self.canvas, scaled, strict=True)]
        found = [(0.0, 0.0, float(width), float(height))]
        for row in range(rows):
            for column in range(columns):
                y, x = row * self.crop - paste[0], column * self.crop - paste[1]
                found.append((x * unit[1], y * unit[0], (x + self.crop) * unit[1], (y + self.crop) * unit[0]))
        return torch.tensor(found)


def cut(size: Size, config: Any, layout: Literal["native", "paper"]) -> CropLayout:
    """How a model of that config of transformers cuts a picture; `layout` is what `fastervlm.prune` calls anyres."""
    crop = config.vision_config.image_size
    way = {"native": CropLayout.native, "paper": CropLayout.paper}[layout]
    return way(size, config.image_grid_pinpoints, crop, crop // config.vision_config.patch_size)


def _within(value: int, side: int) -> int:
    return min(max(value, 0), side)


def scaled_size(size: Size, canvas: Size) -> Size:
    """The size of a picture scaled to fit a canvas, as transformers and the reference round it: up."""
    (height, width), (high, wide) = size, canvas
    if wide / width < high / height:
        return min(math.ceil(height * (wide / width)), high), wide
    return high, min(math.ceil(width * (high / height)), wide)


def paper_canvas(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """The canvas that the picture fills best, as a share of the canvas; of equal ones the first.

    Enlarging counts, unlike in LLaVA's own rule: a 3:2 picture goes onto two crops instead of four. The reference rounds the
    sides of the scaled picture down, and fails on one so thin that nothing is left of it; the sides then count as they are.
    """
    height, width = size

    def filled(point: Sequence[int], rounded: Callable[[float], float]) -> float:
        scale = min(point[1] / width, point[0] / height)
        return rounded(width * scale) * rounded(height * scale) / (point[0] * point[1])

    rounded = int if any(filled(point, int) for point in pinpoints) else float
    best = max(pinpoints, key=lambda point: filled(point, rounded))  # of equal ones max takes the first
    return int(best[0]), int(best[1])
