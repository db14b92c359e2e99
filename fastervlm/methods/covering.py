"""Greedy covering: each further patch adds most to what those before it cover. Dims: R rows to cover, N patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastervlm.selection.kept import waits

# So many numbers are looked at in one go, few enough for a cache.
_AT_A_TIME = 1 << 16


def covering(shares: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """(k,) int64: the columns of shares, one by one, that add most to the sum over rows of their largest share so far.

    What a column adds is multiplied by its weight; of equal columns the earlier is chosen. Sums are exact, so that they do not
    depend on their order, as long as shares are whole numbers and the sum of a column is below 2 ** 53.

    On a processor only the rows that gain are looked at, which soon are few; on a device that would be waited for, all are.

    Args:
        shares: (R, N) float64 or float32, whole numbers of at least 0: how far each patch covers each row.
        k: how many; at most N.
        weight: (N,) float64, at least 0; products are compared in float32. Without it all weigh alike.
    """
    if not waits(shares):
        return torch.from_numpy(_on_host(shares.detach().numpy(), k, None if weight is None else weight.detach().numpy()))
    chosen, covered, larger = [], shares.new_zeros(len(shares)), torch.empty_like(shares)
    taken = torch.zeros(shares.shape[1], dtype=torch.bool, device=shares.device)
    for _ in range(k):
        # A maximum is exact in any dtype, a difference is not.
        torch.maximum(shares, covered[:, None], out=larger)
        gain = larger.sum(dim=0, dtype=torch.double) - covered.sum(dtype=torch.double)
        # In float32 products that are equal but for rounding tie, and the earlier patch goes first.
        value = gain if weight is None else (gain * weight).float()
        best = value.masked_fill(taken, -1).argmax(dim=0, keepdim=True)
        chosen.append(best)
        taken.index_fill_(0, best, value=True)
        covered = covered.maximum(shares.index_select(1, best)[:, 0])
    return torch.cat(chosen)


def _on_host(shares: np.ndarray, k: int, weight: np.ndarray | None) -> np.ndarray:
    """The same where values can be read."""
    chosen, covered = np.empty(k, dtype=np.int64), np.zeros_like(shares[:, 0])
    gain, size = shares.sum(axis=0, dtype=np.float64), max(1, _AT_A_TIME // shares.shape[1])
    for number in range(k):
        value = gain.copy() if weight is None else (gain * weight).astype(np.float32)
        value[chosen[:number]] = -1
        best = chosen[number] = value.argmax()
        reached = shares[:, best]
        better = np.flatnonzero(reached > covered)
        for rows in (better[first : first + size] for first in range(0, len(better), size)):
            gain -= _lost(shares[rows], covered[rows], reached[rows])
        covered[better] = reached[better]
    return chosen


def _lost(part: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(N,): what columns of some rows (R, N) add less, where these were covered as far as low (R,) and are as far as high."""
    np.clip(part, low[:, None], high[:, None], out=part)
    return part.sum(axis=0, dtype=np.float64) - low.sum(dtype=np.float64)
