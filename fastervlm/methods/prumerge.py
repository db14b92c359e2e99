"""LLaVA-PruMerge: the patches [CLS] attends to most, each merged with its neighbours. Dims: B pictures, N patches, K kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from encoders import ScoredPatches
from fastervlm.methods.share import check_count
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class PruMerge:
    """Keep the patches [CLS] attends to most, and add to each those with the most similar keys (arXiv 2403.15388).

    A token is its own patch plus its nearest neighbours among all others, kept or not, each times the attention it gets. The
    budget says how many tokens a picture keeps; `keep=Outliers()` is the paper's: as many as stand out. Scores and keys are
    those of the feature block, and scores are a mean over heads. The authors' code takes one softmax over queries and keys of
    full width, heads side by side, in the tower's last block; given the same scores, it chooses as here. Its further token, a
    sum over all that were dropped, is left out. Its `forward` may run the second form, see `PruMergePlus`. Where nothing is
    dropped, nothing is merged.

    Args:
        neighbours: how many patches are added to each; fewer where there are no more.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"keys"}), ordered=True)

    neighbours: int = 32

    def __post_init__(self) -> None:
        check_count("neighbours", self.neighbours)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` tokens of each picture, all of them mixtures."""
        return with_neighbours(patches, KeptTokens.top(patches.scores.detach(), k), self.neighbours)


def with_neighbours(patches: ScoredPatches, kept: KeptTokens, neighbours: int) -> KeptTokens:
    """The kept tokens, to each of which those with the most similar keys are added, each times its score.

    Where nothing is dropped, nothing is added.
    """
    scores, total = patches.scores.detach(), kept.num_patches
    if kept.index.shape[1] >= total:
        return kept
    keys = patches.keys().transpose(1, 2).flatten(2)
    similar = cosines(kept.gather(keys), keys).to(scores.device)
    own = F.one_hot(kept.index, total)
    similar.masked_fill_(own.bool(), -torch.inf)
    nearest = similar.sort(dim=2, descending=True, stable=True).indices[..., : min(neighbours, total - 1)]
    received = scores[:, None].expand_as(similar)
    added = torch.zeros_like(received).scatter_(2, nearest, received.gather(2, nearest))
    return KeptTokens(kept.index, total, weights=own + added)
