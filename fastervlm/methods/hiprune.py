"""HiPrune: things by the attention of a middle block, the rest by that of the feature block. Dims: B pictures, N patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.share import check_block, check_share
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class HiPrune:
    """Keep anchors of a middle block with their neighbours, and others by the feature block (HiPrune, arXiv 2508.00553).

    Scores are the attention that a patch receives from all tokens, a mean over heads and queries, so that no [CLS] is needed;
    "cls" asked for in `prune` takes its place in both blocks, "norm" and "pool" in the feature block alone. Anchors, a fifth
    of the share rounded, are the patches with the highest scores in the middle block; the patches above, below, left and right
    of them join. The feature block's scores fill up to K. In the authors' code the neighbour to the side of a patch at the end
    of a row lies in the next row; here it has none. If anchors and neighbours are more than K, anchors go first, then what the
    feature block ranks highest.

    Args:
        anchored: the share of the tokens that anchors and their neighbours take, if none of them overlap.
        block: the middle block: a number from 1, or a share of the tower's blocks. The authors take 9 of CLIP's 24, and 16 of
            Qwen2.5-VL's 32, which is the next one here whose attention sees whole pictures.
    """

    anchored: float = 0.1
    block: int | float = 0.375

    def __post_init__(self) -> None:
        check_share("anchored", self.anchored)
        check_block("block", self.block)

    @property
    def traits(self) -> Traits:
        """Two blocks are read."""
        return Traits(ordered=True, score="received", also=(self.block,))

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        scores = patches.scores.detach()
        if k >= scores.shape[1]:
            return KeptTokens.top(scores, k)
        count = round(k * self.anchored / 5)
        middle = patches.scores_in(self.block).detach().to(scores.device)
        anchors = middle.sort(dim=1, descending=True, stable=True).indices[:, :count]
        rank = torch.zeros_like(scores, dtype=torch.long)
        rank.scatter_(1, _around(anchors, patches.grid), 1).scatter_(1, anchors, 2)
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, rank.gather(1, order).argsort(dim=1, descending=True, stable=True))
        return KeptTokens(order[:, :k].sort(dim=1).values, scores.shape[1])


def _around(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 4 n) the neighbours of places (B, n); a place at the edge of the grid takes its own part."""
    rows, columns = grid
    row, column = places // columns, places % columns
    above, below = (row - 1).clamp(min=0), (row + 1).clamp(max=rows - 1)
    left, right = (column - 1).clamp(min=0), (column + 1).clamp(max=columns - 1)
    return torch.cat((above * columns + column, below * columns + column, row * columns + left, row * columns + right), dim=1)
