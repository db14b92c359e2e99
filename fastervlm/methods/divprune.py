"""DivPrune: the patches that are farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from encoders import ScoredPatches
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class DivPrune:
    """Keep the patches whose least distance to each other is largest, chosen greedily (arXiv 2503.02175).

    Distance is one minus cosine similarity. The first patch is the one farthest from its nearest neighbour, each further one
    the one farthest from what is kept already. The paper measures after the projector; here the tower's features are
    compared, so that only what is kept is projected.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features"}), ordered=True, score_free=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        similar = cosines(patches.features())
        pictures = torch.arange(len(similar), device=similar.device)
        similar.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        nearest = similar.amax(dim=2)
        chosen = []
        for _ in range(k):
            chosen.append(nearest.argmin(dim=1))
            nearest = similar[pictures, chosen[-1]] if len(chosen) == 1 else nearest.maximum(similar[pictures, chosen[-1]])
            nearest[pictures, chosen[-1]] = torch.inf
        return KeptTokens(torch.stack(chosen, dim=1).sort(dim=1).values, total)
