"""What was kept of a picture, for drawings and debugging. Dims: N patches of it, K kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """One picture of the last pruned call, or one crop of it.

    Attributes:
        scores: (N,) float32, the [CLS] attention of each patch, mean over heads, whatever the method chose by.
        index: (K,) int64, the kept patches, ascending.
        grid: rows and columns of the patches; rows * columns == N.
        layout: how the kept tokens stand before the language model; "flat": in raster order, nothing between.
    """

    scores: Tensor
    index: Tensor
    grid: tuple[int, int]
    layout: str = "flat"

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
