"""Coarser grids of tokens: how many rows and columns, and where their cells lie in the grid they stand for."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coarser(grid: tuple[int, int], k: int) -> tuple[int, int]:
    """Rows and columns of a grid of at most `k` cells, about as wide for its height as `grid`, and with the most cells so.

    Of its shape the height is rounded down or up, whichever leaves more cells; of equal ones down.

    Args:
        grid: rows and columns.
        k: at least 1; where it is rows * columns or more, the grid stays.
    """
    rows, columns = grid
    if k >= rows * columns:
        return grid
    exact = math.sqrt(k * rows / columns)
    found = []
    for high in (math.floor(exact), math.ceil(exact)):
        high = min(max(1, high), rows, k)
        found.append((high, min(columns, k // high)))
    return max(found, key=math.prod)


def middles(grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(cells of `new`,) int64, ascending: raster positions in `grid` of the middles of what the cells of `new` cover."""
    down, across = ((2 * torch.arange(each) + 1) * old // (2 * each) for old, each in zip(grid, new, strict=True))
    return (down[:, None] * grid[1] + across).flatten()
