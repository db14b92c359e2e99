"""Fewer tokens by a lower resolution, what every choice among patches has to beat as well. Dims: B pictures, N patches, K kept.

Neither looks at what a picture shows. Plain downsampling was found to beat many methods of pruning at equal tokens (VTC-Bench,
ACL 2026).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.selection.grids import coarser, middles
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class Pool:
    """Average the projected tokens over a coarser grid, as `torch.nn.functional.adaptive_avg_pool2d` does.

    The grid is `coarser` than that of the patches: at most as many tokens as asked for. Each stands at the middle of what it is
    the mean of. The tower and the projector run whole: only the language model has less to do.
    """

    traits: ClassVar[Traits] = Traits(ordered=True, other_counts=True, score_free=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Means of at most `k` regions of each picture."""
        total = math.prod(patches.grid)
        index = torch.arange(total, device=patches.scores.device)
        if k >= total:
            return KeptTokens(index.expand(len(patches.scores), -1), total)
        down, across = (_shares(old, new) for old, new in zip(patches.grid, coarser(patches.grid, k), strict=True))
        weights = torch.kron(down, across).to(index.device)
        index = middles(patches.grid, coarser(patches.grid, k)).to(index.device)
        return KeptTokens(
            index.expand(len(patches.scores), -1),
            total,
            weights=weights.expand(len(patches.scores), -1, -1),
            projected=True,
        )


@dataclass(frozen=True)
class Resize:
    """Shrink the picture itself, so that the tower gives at most so many tokens; nothing is chosen among them.

    A LLaVA's tower then sees the smaller picture with its position table interpolated (transformers'
    `interpolate_pos_encoding`); a picture of a model that reads any size is shrunk before its processor, as by `max_pixels`.
    """

    traits: ClassVar[Traits] = Traits(ordered=True, other_counts=True, score_free=True, resizes=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Refused: there are patches already.

        Raises:
            UserError: always.
        """
        raise UserError(
            "'resize' shrinks pictures before the tower and chooses none of its patches; use it with fastervlm.prune or "
            "fastervlm compare, or 'pool' here."
        )


def _shares(old: int, new: int) -> Tensor:
    """(new, old) float64: how much of each place along one side a cell is the mean of; cells of unequal parts overlap."""
    shares = torch.zeros(new, old, dtype=torch.float64)
    for cell in range(new):
        first, last = cell * old // new, math.ceil((cell + 1) * old / new)
        shares[cell, first:last] = 1 / (last - first)
    return shares
