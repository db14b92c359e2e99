"""VisPruner: important patches by [CLS] attention, diverse ones among the rest. Dims: B pictures, R patches left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.share import check_share
from fastervlm.methods.similarity import whole_cosines
from fastervlm.selection.kept import KeptTokens, waits
from fastervlm.selection.method import Traits

# So many duplicates go in a round.
_ROUND = 8
# From so many patches on, lists of neighbours are faster than whole rows.
_MANY = 1024
# So many of the most similar patches are known of each; the rest is looked up where none of them is left.
_KNOWN = 16
# So many rows are ordered at a time.
_AT_A_TIME = 256


@dataclass(frozen=True)
class VisPruner:
    """Keep a part by [CLS] attention; remove duplicates among the others and keep what is left (arXiv 2412.01818v2).

    Duplicates are removed in rounds, as in the authors' code. A round deals the remaining patches into two halves. Up to eight
    patches of the first half leave: those that are most similar to one of the second. The first round takes the patches in the
    order of their attention, each later one in the order that the last round left. So if two patches change places, many later
    choices change. Where all features are much alike, the result depends on the last bits of the similarities, in the authors'
    code and here. Where an odd number of patches is left, as with 58 of 576, the first half here has one more than the second;
    the authors' code ends with an error of shapes there.

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
            similar = whole_cosines(features[pictures, others.to(features.device)])
            distinct = others.gather(1, _distinct(similar, k - important).to(order.device))
            order = torch.cat((order[:, :important], distinct), dim=1)
        return KeptTokens(order[:, :k].sort(dim=1).values, patches.scores.shape[1])


def _distinct(similar: Tensor, k: int) -> Tensor:
    """(B, k) of R rows, duplicates removed by similarity (B, R, R), which is symmetric, int32."""
    if similar.shape[1] >= _MANY and not waits(similar):
        return torch.stack([_distinct_by_neighbours(picture, k) for picture in similar])
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


def _distinct_by_neighbours(similar: Tensor, k: int) -> Tensor:
    """The same (k,) of one picture (R, R) by its most similar patches, which are found again whenever half have left."""
    rest, known = torch.arange(len(similar)), None
    while len(rest) > k:
        if known is None or 2 * len(rest) <= len(known.alive):
            known = _Neighbours(similar, rest)
        first, second = rest[::2], rest[1::2]
        leave = min(_ROUND, len(rest) - k, len(first))
        likest = known.likest(first, second)
        rest = torch.cat((first[likest.argsort(descending=True, stable=True)[leave:]], second))
    return rest


class _Neighbours:
    """For each patch of some that are left, the most similar ones among them.

    Attributes:
        similar: (R, R) int32, symmetric.
        alive: (n,) int64, the patches that were left.
        places: (R, T) int64, for each of them the most similar others, the best first; of the rest anything.
        values: (R, T) int32, how similar they are.
    """

    def __init__(self, similar: Tensor, alive: Tensor) -> None:
        self.similar, self.alive = similar, alive
        count = min(_KNOWN, len(alive))
        self.places = torch.empty(len(similar), count, dtype=torch.long)
        self.values = torch.empty(len(similar), count, dtype=similar.dtype)
        for some in alive.split(_AT_A_TIME):
            values, places = similar.index_select(0, some).index_select(1, alive).topk(count, dim=1)
            self.values.index_copy_(0, some, values)
            self.places.index_copy_(0, some, alive[places])

    def likest(self, first: Tensor, second: Tensor) -> Tensor:
        """(m,) int32: how similar each of first (m,) is to the most similar of second (n,)."""
        among = torch.zeros(len(self.similar), dtype=torch.bool).index_fill_(0, second, value=True)
        found = among[self.places.index_select(0, first)]
        best = self.values.index_select(0, first).gather(1, found.byte().argmax(dim=1, keepdim=True))[:, 0]
        unknown = found.any(dim=1).logical_not().nonzero()[:, 0]
        for some in unknown.split(_AT_A_TIME):
            best[some] = self.similar.index_select(0, first[some]).index_select(1, second).amax(dim=1)
        return best
