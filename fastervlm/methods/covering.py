"""Greedy covering: the columns that between them cover all rows best. Dims: R rows to be covered, N patches, K chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from fastervlm.selection.kept import waits

# So many numbers are compared at a time: few enough to stay in a processor's cache.
_AT_A_TIME = 1 << 16


def covering(shares: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """(k,) int64: the columns of shares, one by one, that add most to the sum over rows of their largest share so far.

    What a column adds is multiplied by its weight; of equal columns the earlier is chosen. Sums are exact, so that they do not
    depend on their order, as long as shares are whole numbers and the sum of a column is below 2 ** 53.

    Args:
        shares: (R, N) float64, whole numbers of at least 0: how far each patch covers each row.
        k: how many; at most N.
        weight: (N,) float64, at least 0; products are compared in float32. Without it all weigh alike.
    """
    chosen, covered, gain = [], shares.new_zeros(len(shares)), shares.sum(dim=0)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    for _ in range(k):
        # In float32 products that are equal but for rounding tie, and the earlier patch goes first.
        value = gain if weight is None else (gain * weight).float()
        best = value.masked_fill(taken, -1).argmax(dim=0, keepdim=True)
        chosen.append(best)
        taken.index_fill_(0, best, value=True)
        reached = shares.index_select(1, best)[:, 0]
        gain = gain - _lost(shares, covered, reached)
        covered = covered.maximum(reached)
    return torch.cat(chosen)


def _lost(shares: Tensor, covered: Tensor, reached: Tensor) -> Tensor:
    """(N,): what each column of shares (R, N) adds less, where rows covered so far (R,) are now reached so far (R,).

    On a processor only the rows that gain are looked at, which soon are few; on a device that would be waited for, all are.
    """
    if waits(shares):
        return _between(shares, covered[:, None], covered.maximum(reached)[:, None])
    lost, rows = torch.zeros_like(shares[0]), (reached > covered).nonzero()[:, 0]
    for some in rows.split(max(1, _AT_A_TIME // shares.shape[1])):
        lost += _between(*(x.index_select(0, some) for x in (shares, covered[:, None], reached[:, None])))
    return lost


def _between(shares: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(N,): how much of each column of shares (R, N) lies between low (R, 1) and high (R, 1)."""
    raised = shares.maximum(low)
    return torch.minimum(raised, high, out=raised).sum(dim=0) - low.sum()
