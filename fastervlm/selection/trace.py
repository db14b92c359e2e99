"""What was kept of a picture, for drawings and debugging. Dims: N patches of it, K kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor


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
    """

    scores: Tensor
    index: Tensor
    grid: tuple[int, int]
    layout: str = "flat"
    shows: Literal["square", "whole", "part"] = field(default="square", kw_only=True)

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
