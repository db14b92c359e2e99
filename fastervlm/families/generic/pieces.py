"""The pictures of a call as a connector gives them: parted, and with what is known of their shapes and pixels.

A piece is what has placeholders and a budget of its own: a picture, or a tile of one. Dims: T_i tokens of a piece, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from encoders.base import image_key
from fastervlm.families.encoding import runs

# What a call may say of the shapes of its pictures, in any unit: rows and columns stand last.
_SHAPES = ("image_grid_thw", "spatial_shapes", "image_sizes", "image_grid_hw")


@dataclass(frozen=True, eq=False)
class Piece:
    """One of them.

    Attributes:
        tokens: (T_i, D), all it has.
        grid: rows and columns of its tokens; (1, T_i) where nothing tells.
        whole: the call says the shape of the picture, so that the grid covers all of it.
        key: of its pixels, see `encoders.base.image_key`; 0 where nothing tells which they are.
    """

    tokens: Tensor
    grid: tuple[int, int]
    whole: bool
    key: int


def pieces_of(
    features: Any, call: Mapping[str, Any], placeholder: int, *, stretched: bool = False, tiled: bool = False
) -> list[Piece]:
    """The pieces of a call, in the order of their placeholders.

    Args:
        features: what the stock model made of the pictures: a tensor (pieces, T, D), a list of (T_i, D), or one (T, D).
        call: the arguments.
        placeholder: the id of it.
        stretched: each piece is a whole picture, stretched to a square.
        tiled: pieces are tiles, of which nothing here says whether one is a whole picture.
    """
    entries = _entries(features)
    pixels = call["pixel_values"]
    if (isinstance(features, Tensor) and features.dim() == 2) or (pixels.dim() == 5 and len(entries) == len(pixels)):
        entries = _parted(entries, runs(call["input_ids"], placeholder), call)
    keys = _keys(pixels, call, len(entries))
    shapes = next((call[name] for name in _SHAPES if call.get(name) is not None and len(call[name]) == len(entries)), None)
    sizes = [None] * len(entries) if shapes is None else [(int(shape[-2]), int(shape[-1])) for shape in shapes]
    grids = [_grid(len(tokens), size) for tokens, size in zip(entries, sizes, strict=True)]
    return [
        Piece(tokens, grid, not tiled and (stretched or (size is not None and grid[0] > 1)), key)
        for tokens, grid, size, key in zip(entries, grids, sizes, keys, strict=True)
    ]


def _entries(features: Any) -> list[Tensor]:
    """The features of each entry, (T_i, D)."""
    parts = [features] if isinstance(features, Tensor) and features.dim() == 2 else features
    if not isinstance(parts, (list, tuple, Tensor)) or not all(isinstance(x, Tensor) and x.dim() > 1 for x in parts):
        raise UserError("What this model makes of pictures is no list of tokens of each, so that none of them can be pruned.")
    return [x.flatten(0, -2) for x in parts]


def _parted(entries: list[Tensor], lengths: list[int], call: Mapping[str, Any]) -> list[Tensor]:
    """Entries that hold all pictures of a prompt, parted as the prompt shows them."""
    if call.get("image_index") is not None:
        raise UserError("This model joins the pictures of each prompt, so that image_index cannot name them; leave it out.")
    total = sum(map(len, entries))
    if sum(lengths) != total:
        raise UserError(
            f"The prompts hold {sum(lengths)} image placeholder tokens, but the pictures need {total}; make input_ids and "
            "pixel_values in one call of the processor."
        )
    return list(torch.cat(entries).split(lengths))


def _keys(pixels: Tensor, call: Mapping[str, Any], count: int) -> list[int]:
    """A key of the pixels of each piece, whatever else is in the batch; padding is of zeros, which count nothing."""
    grid = call.get("image_grid_thw")
    if grid is not None and len(grid) == count and int(grid.prod(-1).sum()) == len(pixels):
        return [int(image_key(rows[None])) for rows in pixels.split(grid.prod(-1).tolist())]
    rows = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
    if pixels.dim() == 5 and len(rows) != count:
        rows = rows[rows.flatten(1).any(dim=1)]
    return image_key(rows).tolist() if len(rows) == count else [0] * count


def _grid(count: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of so many tokens of a picture of that size in any unit, or of a square one."""
    if size is not None and min(size) > 0:
        unit = math.sqrt(size[0] * size[1] / count)
        rows, columns = round(size[0] / unit), round(size[1] / unit)
        if rows * columns == count:
            return rows, columns
    side = math.isqrt(count)
    return (side, side) if side * side == count else (1, count)
