"""VisPruner: important patches by [CLS] attention, diverse ones among the rest. Dims: B pictures, R patches left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.share import check_share
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# So many duplicates go in a round.
_ROUND = 8
# Whole numbers of 32 bits are twice as fast as float64; in float32 random pictures of full size have false ties.
_STEPS = 2.0**30


@dataclass(frozen=True)
class VisPruner:
    """Keep a part by [CLS] attention; remove duplicates among the others and keep what is left (arXiv 2412.01818v2).

    Duplicates are removed in rounds, as in the authors' code. A round deals the remaining patches into two halves. Up to eight
    patches of the first half leave: those that are most similar to one of the second. The first round takes the patches in the
    order of their attention, each later one in the order that the last round left. So if two patches change places, many later
    choices change. Where all features are much alike, the result depends on the last bits of the similarities, in the authors'
    code and here.

    Args:
        important: the share of the tokens kept by attention, rounded down; in [0, 1].
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features"}), ordered=True)

    important: float = 0.5

    def __post_init__(self) -> None:
        check_share("important", self.important)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        order = patches.scores.sort(dim=1, descending=True, stable=True).indices
        important = int(k * self.important)
        if important < k < order.shape[1]:
            features, others = patches.features(), order[:, important:]
            pictures = torch.arange(len(features), device=features.device)[:, None]
            similar = cosines(features[pictures, others.to(features.device)]).mul_(_STEPS).round_().int()
            distinct = others.gather(1, _distinct(similar, k - important).to(order.device))
            order = torch.cat((order[:, :important], distinct), dim=1)
        return KeptTokens(order[:, :k].sort(dim=1).values, patches.scores.shape[1])


def _distinct(similar: Tensor, k: int) -> Tensor:
    """(B, k) of R rows, duplicates removed by similarity (B, R, R), which is symmetric, int32."""
    batch, count = similar.shape[:2]
    rows, before = similar.flatten(0, 1), count * torch.arange(batch, device=similar.device)[:, None]
    rest = torch.arange(count, device=similar.device).expand(batch, -1)
    while rest.shape[1] > k:
        first, second = rest[:, ::2], rest[:, 1::2]
        # Whole rows are several times faster than only the pairs that are wanted.
        likest = rows.index_select(0, (before + second).flatten()).view(batch, -1, count).amax(dim=1).gather(1, first)
        leave = min(_ROUND, rest.shape[1] - k, first.shape[1])
        stay = likest.argsort(dim=1, descending=True, stable=True)[:, leave:]
        rest = torch.cat((first.gather(1, stay), second), dim=1)
    return rest
