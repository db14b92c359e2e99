"""What was kept of a picture, for drawings and debugging. Dims: N patches of it, K kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from encoders.errors import UserError
from fastervlm.selection.tile_grids import TileGrid, tile_grid


class Trace:
    """What was kept of one picture, clip or prompt; of which kind it is, its class says.

    A handle gives one of several kinds. An editor completes what all of them have; to a type checker, what this one has not is
    `Any`, so that nobody has to ask for the kind first.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True, eq=False)
class ImageTrace(Trace):
    """One picture of the last pruned call, or one crop of it.

    Attributes:
        scores: (N,) float32, the [CLS] attention of each patch, mean over heads, whatever the method chose by.
        index: (K,) int64, the kept patches, ascending.
        grid: rows and columns of the patches; rows * columns == N.
        layout: how the kept tokens stand before the language model; "flat": in raster order, nothing between.
        shows: what the grid covers: the "square" that a processor cut or padded the picture to, the "whole" picture, stretched
            to it, or a "part" of it that nothing here tells.
        tile: of a picture cut into tiles, which one this is, and of how many; the last of several is the whole picture again.
        tiling: gives the rows and columns that so many tiles of a picture of a size (height, width) stand in; else `tile_grid`.
    """

    scores: Tensor
    index: Tensor
    grid: tuple[int, int]
    layout: str = "flat"
    shows: Literal["square", "whole", "part"] = field(default="square", kw_only=True)
    tile: tuple[int, int] | None = field(default=None, kw_only=True)
    tiling: TileGrid | None = field(default=None, kw_only=True)  # a function here would be in every compiled graph's way

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model."""
        return len(self.index)

    @property
    def mask(self) -> Tensor:
        """(rows, columns) bool, true where a patch was kept."""
        mask = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.bool)
        mask[self.index.cpu()] = True
        return mask.view(self.grid)

    def region(self, size: tuple[int, int], fit: Literal["crop", "pad"] = "crop") -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what the grid covers, in pixels of a picture of that size (height, width).

        Args:
            size: of the picture as it was given to the processor.
            fit: how the processor made it square, where it did: "crop" cut out the middle, "pad" added borders.

        Raises:
            UserError: nothing tells.
        """
        high, wide = size
        if self.shows == "square":
            side = min(size) if fit == "crop" else max(size)
            left, top = (wide - side) / 2, (high - side) / 2
            return left, top, left + side, top + side
        if self.shows == "whole" or (self.tile is not None and self.tile[0] == self.tile[1] - 1):
            return 0.0, 0.0, float(wide), float(high)
        if self.tile is None:
            raise UserError("Nothing tells which part of the picture these patches lie in; pass the trace of a whole picture.")
        rows, columns = (self.tiling or tile_grid)(self.tile[1] - 1, size)
        row, column = divmod(self.tile[0], columns)
        return column * wide / columns, row * high / rows, (column + 1) * wide / columns, (row + 1) * high / rows

    def boxes(self, size: tuple[int, int], fit: Literal["crop", "pad"] = "crop") -> Tensor:
        """(K, 4) float32: left, top, right, bottom of each kept token, in pixels of the picture; arguments as for `region`.

        A token of several patches has one box. Of a picture that was padded boxes may reach outside.
        """
        left, top, right, bottom = self.region(size, fit)
        index = self.index.cpu()
        corner = torch.stack((index % self.grid[1], index // self.grid[1]), dim=1)
        start, unit = torch.tensor([left, top]), torch.tensor([(right - left) / self.grid[1], (bottom - top) / self.grid[0]])
        return torch.cat((start + corner * unit, start + (corner + 1) * unit), dim=1)
