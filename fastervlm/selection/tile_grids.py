"""In how many rows and columns the tiles of a picture stand, by their number and its size, as transformers cuts it."""

from __future__ import annotations

from collections.abc import Callable

# From a number of tiles and the size of a picture (height, width) to rows and columns.
TileGrid = Callable[[int, tuple[int, int]], tuple[int, int]]


def tile_grid(tiles: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that so many tiles of a picture of that size (height, width) stand in: those nearest to its shape."""
    return min(_grids(tiles), key=lambda grid: abs(size[1] / size[0] - grid[1] / grid[0]))


def stretched_least(tiles: int, size: tuple[int, int], side: int) -> tuple[int, int]:
    """The same of processors that enlarge a picture as little as they must to fill tiles of `side` pixels (Cohere2Vision).

    They take the fewest tiles that hold it; of so many tiles one grid does, which is the one that shows it largest.
    """
    return max(_grids(tiles), key=lambda grid: _scale(grid, size, side))


def shorter_side_covered(tiles: int, size: tuple[int, int]) -> tuple[int, int]:
    """The same of processors that lay whole tiles along the longer side and as many along the other as cover it (Idefics3)."""
    wide, shape = size[1] >= size[0], min(size) / max(size)

    def off(grid: tuple[int, int]) -> float:
        covered = grid[1] * shape  # of the shorter side, in tiles; it lies in (grid[0] - 1, grid[0]] but for rounding
        return max(covered - grid[0], grid[0] - 1 - covered, 0.0)

    short, long = min((grid for grid in _grids(tiles) if grid[1] >= grid[0]), key=off)
    return (short, long) if wide else (long, short)


def fitted(tiles: int, size: tuple[int, int], side: int) -> tuple[int, int]:
    """The same of processors that fit a picture into tiles of `side` pixels, as large as it gets there (PerceptionLM).

    A picture that is larger than all tiles together has those of the nearest shape that is no longer than its own.
    """
    larger = [grid for grid in _grids(tiles) if _scale(grid, size, side) >= 1]
    if larger:
        return max(larger, key=lambda grid: _scale(grid, size, side))
    shape = size[1] / size[0]
    if shape >= 1:
        return max((grid for grid in _grids(tiles) if grid[1] / grid[0] <= shape), key=lambda grid: grid[1])
    return min((grid for grid in _grids(tiles) if grid[1] / grid[0] > shape), key=lambda grid: grid[1])


def _scale(grid: tuple[int, int], size: tuple[int, int], side: int) -> float:
    """How much larger than the picture it can be on a grid of tiles."""
    return min(grid[0] * side / size[0], grid[1] * side / size[1])


def _grids(tiles: int) -> list[tuple[int, int]]:
    """Rows and columns of all grids of so many tiles."""
    return [(rows, tiles // rows) for rows in range(1, tiles + 1) if tiles % rows == 0]
