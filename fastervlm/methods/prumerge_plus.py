"""PruMerge+: beside the patches [CLS] attends to most, some at even steps. Dims: B pictures, N patches, K kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from encoders import ScoredPatches
from fastervlm.methods.prumerge import with_neighbours
from fastervlm.methods.share import check_count, check_share
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class PruMergePlus:
    """Keep a part by [CLS] attention, others at even steps over the picture, and merge each with those like it (2403.15388).

    This is PruMerge's second form, for tasks that need all of the picture; tokens are merged as in `PruMerge`, see there. In
    the authors' code three times as many are sampled as stand out by attention, at equal steps over all patches, and those that
    stand out already are left out; so it keeps about four times as many as the first form. Here all K are divided that way, and
    steps run over the patches that are left, so that exactly K are kept.

    Args:
        important: the share of the tokens that are kept by attention, rounded; at least one of them is.
        neighbours: how many patches are added to each; fewer where there are no more.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"keys"}), ordered=True)

    important: float = 0.25
    neighbours: int = 32

    def __post_init__(self) -> None:
        check_share("important", self.important)
        check_count("neighbours", self.neighbours)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` tokens of each picture, all of them mixtures."""
        scores = patches.scores.detach()
        total = scores.shape[1]
        important = max(1, int(k * self.important + 0.5))
        best = KeptTokens.top(scores, min(k, important))
        if k >= total or important >= k:
            return with_neighbours(patches, KeptTokens.top(scores, k), self.neighbours)
        others = best.mask.long().argsort(dim=1, stable=True)[:, : total - important]
        steps = torch.arange(k - important, device=scores.device) * (total - important) // (k - important)
        index = torch.cat((best.index, others[:, steps]), dim=1).sort(dim=1).values
        return with_neighbours(patches, KeptTokens(index, total), self.neighbours)
