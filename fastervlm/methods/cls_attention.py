"""Ranking by [CLS] attention: FasterVLM itself."""

from __future__ import annotations

from dataclasses import dataclass

from encoders import ScoredPatches
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class ClsAttention:
    """Keep the patches that the [CLS] token attends to most, a plain mean over heads (FasterVLM, arXiv 2412.01818).

    Args:
        lowest: keep the least attended ones instead, to see what the ranking is worth.
    """

    lowest: bool = False

    @property
    def traits(self) -> Traits:
        """What leaves inside the tower is what [CLS] attends to least, so the best are there still, and the lowest are not."""
        return Traits(ordered=True, survives_thinning=not self.lowest, work="pruned")

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture by `patches.scores` (B, N)."""
        return KeptTokens.top(-patches.scores if self.lowest else patches.scores, k)
