"""What a distribution of attention over patches looks like, in a few numbers.

Dims: R distributions, n patches that received attention, N points of a curve.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastervlm.selection.budget import TokenBudget

TOP = 0.1
STATISTICS = ("centre_of_mass", "entropy", "gini", "top_share", "overlap_with_cls")


def statistics(values: Tensor, raster: Tensor, total: int) -> Tensor:
    """The numbers in `STATISTICS`; NaN for a distribution that is zero everywhere.

    centre_of_mass: mean place in raster order, weighted by attention: 0 is the first patch of `total`, 1 the last.
    entropy: of the distribution, as a share of that of an even one: 1 is even, 0 all on one patch.
    gini: 0 is even, towards 1 all on one patch.
    top_share: the share that the strongest tenth of the patches has.
    overlap_with_cls: the share of the strongest tenth that is also in the strongest tenth of the first distribution.

    Args:
        values: (R, n) float64, n >= 2, not negative; the first is the [CLS] attention.
        raster: (n,) the place of each patch, of `total` places.

    Returns:
        (5, R) float64.
    """
    count, top = values.shape[1], top_of(values.shape[1])
    share = values / values.sum(dim=1, keepdim=True)
    ordered, order = share.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(count, 0, -1, dtype=torch.float64)
    chosen = torch.zeros(count, dtype=torch.float64)
    chosen[order[0, :top]] = 1
    overlap = chosen[order[:, :top]].mean(dim=1)
    return torch.stack((
        share @ raster.double() / (total - 1),
        -torch.xlogy(share, share).sum(dim=1) / math.log(count),
        2 * (ordered @ rank) / count - (count + 1) / count,
        ordered[:, :top].sum(dim=1),
        torch.where(share[:, 0].isnan(), torch.nan, overlap),
    ))  # fmt: skip


def curves(values: Tensor, points: int) -> Tensor:
    """Cumulative attention of values (R, n), strongest patch first, (R, N): the share that the strongest i / N of them have.

    Of other than N patches it is read off the straight lines between theirs.
    """
    ordered = values.sort(dim=1, descending=True).values
    rising = ordered.cumsum(dim=1) / ordered.sum(dim=1, keepdim=True)
    count = values.shape[1]
    if count == points:
        return rising
    rising = torch.nn.functional.pad(rising, (1, 0))
    place = torch.arange(1, points + 1, dtype=torch.float64) * count / points
    low = place.long().clamp(max=count - 1)
    return torch.lerp(rising[:, low], rising[:, low + 1], place - low)


def top_of(count: int) -> int:
    """How many patches the strongest tenth of `count` are."""
    return TokenBudget(keep=TOP).resolve(count)


def slope(values: np.ndarray) -> float:
    """Of the straight line nearest to values (L,) by least squares, per layer; NaN of less than two."""
    there = np.isfinite(values)
    return float(np.polyfit(np.flatnonzero(there), values[there], 1)[0]) if there.sum() > 1 else math.nan


def finite(value: Any) -> float | None:
    """A number for a JSON file; None where there is none."""
    return float(value) if math.isfinite(value) else None
