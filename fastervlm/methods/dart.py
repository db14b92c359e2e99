"""DART: pivots, and the patches that duplicate them least. Dims: B pictures, N patches, P pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from encoders import ScoredPatches
from fastervlm.methods.share import check_count
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class DART:
    """Keep a few pivots and, for each of them in turn, the patches least similar to it (arXiv 2502.11494).

    Pivots are the patches whose keys have the largest L1 norm over all heads. The others are shared out evenly, the earlier
    pivots getting one more where they do not divide; a pivot takes from what those before it left. The paper prunes inside
    the language model, with pivots among the words too; this form looks at the tower's features and keys instead. The authors'
    code gives out shares in the order of a Python set of pivots, which is no rank; taken by rank, it chooses as here.

    Args:
        pivots: how many; fewer where fewer tokens are kept.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features", "keys"}), ordered=True, score_free=True)

    pivots: int = 4

    def __post_init__(self) -> None:
        check_count("pivots", self.pivots)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        norms = patches.keys().detach().double().abs().sum(dim=(1, 3)).float()
        count = min(self.pivots, k)
        pivots = norms.sort(dim=1, descending=True, stable=True).indices[:, :count]
        features = patches.features()
        pictures = torch.arange(len(features), device=features.device)[:, None]
        pivots = pivots.to(features.device)
        similar = cosines(features[pictures, pivots], features)
        taken = torch.zeros(len(features), total, dtype=torch.bool, device=features.device).scatter_(1, pivots, True)
        for pivot in range(count):
            share = (k - count) // count + (pivot < (k - count) % count)
            likeness = similar[:, pivot].masked_fill(taken, torch.inf)
            taken.scatter_(1, likeness.argsort(dim=1, stable=True)[:, :share], True)
        return KeptTokens.top(taken.float(), k)
