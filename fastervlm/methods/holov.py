"""HoloV: each part of a picture keeps a share of the tokens. Dims: B pictures, N patches, R runs, L patches of the longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.share import check_count, check_share
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# As in the authors' code: scores are counted in thousandths, and this much keeps divisions finite.
_UNIT, _SMALL = 1e3, 1e-6
# Weights of runs are compared in steps of this, so that those that are equal but for rounding tie.
_STEPS = 2.0**30


@dataclass(frozen=True)
class HoloV:
    """Keep a share of the tokens of each part of the picture, and there by [CLS] attention (HoloV, arXiv 2510.02912).

    Patches in raster order are cut into runs of equal length, the first ones being longer by one where they do not divide. The
    weight of a run is the mean over its patches of their attention, plus `diversity` times the variance of their cosines to
    the others of the run, brought to the scale of attention. Its share is its weight over all weights times K, rounded down;
    what is left goes to the heaviest runs, one each, again and again; a run that is full is passed over. Of equal runs the
    earlier goes first.

    As in the authors' code, variance is rescaled in each run for itself. So its mean there is that of attention, and it changes
    a share only where all patches of a run are nearly alike. There a run that is full leaves tokens of zeros, here the next
    ones take them.

    Args:
        runs: how many; never more than there are patches.
        diversity: how much variance weighs beside attention, a share in [0, 1].
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features"}), ordered=True)

    runs: int = 16
    diversity: float = 0.09

    def __post_init__(self) -> None:
        check_count("runs", self.runs)
        check_share("diversity", self.diversity)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        scores = patches.scores.detach()
        total = scores.shape[1]
        if k >= total:
            return KeptTokens.top(scores, k)
        places, real, slots = _cut(total, min(self.runs, total), scores.device)
        scores = scores[:, places].masked_fill(~real, -torch.inf)
        variance = _variance(patches.features(), places, real).to(scores.device)
        weights = self._weights(scores.double().masked_fill(~real, 0).sum(dim=2) / real.sum(dim=1), variance)
        turns = _turns(scores, weights, real, k)
        return KeptTokens.top(-turns.flatten(1)[:, slots], k)

    def _weights(self, attention: Tensor, variance: Tensor) -> Tensor:
        """(B, R) float64, shares that sum to a little less than 1, given the means (B, R) of both over each run."""
        weights = _UNIT * attention * (1 + self.diversity * variance / (variance + _SMALL))
        return weights / (weights.sum(dim=1, keepdim=True) + _SMALL)


def _cut(total: int, runs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The patches of each run (R, L), (R, L) bool which of them are there, the others being any, and the slot (N,) of each."""
    lengths = [len(range(run, total, runs)) for run in range(runs)]
    starts = [sum(lengths[:run]) for run in range(runs)]
    slot = torch.arange(lengths[0])
    real = slot < torch.tensor(lengths)[:, None]
    places = (torch.tensor(starts)[:, None] + slot).clamp(max=total - 1)
    slots = torch.tensor([run * lengths[0] + i for run, length in enumerate(lengths) for i in range(length)])
    return places.to(device, non_blocking=True), real.to(device, non_blocking=True), slots.to(device, non_blocking=True)


def _variance(features: Tensor, places: Tensor, real: Tensor) -> Tensor:
    """(B, R) float64: the mean over each run of the variance of a patch's cosines to the others; 0 of a single patch.

    As in the authors' code, the patch's own cosine counts as 0 among them.
    """
    places, real = places.to(features.device), real.to(features.device)
    similar = cosines(features[:, places].flatten(0, 1)).unflatten(0, (-1, len(places)))
    both = real[:, :, None] & real[:, None, :]
    similar = similar.masked_fill(~both, 0)
    similar.diagonal(dim1=-2, dim2=-1).zero_()
    count = real.sum(dim=1)
    others = (count - 1).clamp(min=1)[:, None]
    apart = (similar - similar.sum(dim=3, keepdim=True) / others[:, :, None]).masked_fill_(~both, 0)
    return (apart.square().sum(dim=3) / others).sum(dim=2) / count


def _turns(scores: Tensor, weights: Tensor, real: Tensor, k: int) -> Tensor:
    """(B, R, L) int64: the turn at which each patch is kept: the first, -1, is that of all that a run's share holds.

    Args:
        scores: (B, R, L), minus infinity where there is no patch.
        weights: (B, R) of the runs.
        real: (R, L), where there is a patch.
        k: how many are kept.
    """
    place = scores.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    share = torch.minimum((weights * k).floor().long(), real.sum(dim=1))[:, :, None]
    order = (weights * _STEPS).round().argsort(dim=1, descending=True, stable=True).argsort(dim=1)[:, :, None]
    return torch.where(place < share, -1, (place - share) * len(real) + order)
