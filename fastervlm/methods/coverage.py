"""Coverage: patches that between them are like all patches of the picture, whatever any attention says. Dims: N patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.covering import covering
from fastervlm.methods.share import check_positive
from fastervlm.methods.similarity import cosine_rows
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

_ROWS = 1 << 16  # numbers looked at in one go, few enough for a cache
_LARGE = 2048  # patches


@dataclass(frozen=True)
class Coverage:
    """Keep the patches that cover the picture best, chosen greedily; no attention is read (MMTok, arXiv 2508.18264).

    A patch i is covered by a patch j as far as softmax over j of cos(i, j) / temperature says, and by a choice as far as by the
    best of it. Each further patch is the one that adds most to the sum over all patches; of equal ones the earlier. This is the
    picture's half of the paper's method, with its temperature; the other half compares with the words of the question.

    Args:
        temperature: how sharply the nearest patches count before the others; above 0.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features"}), ordered=True, score_free=True)

    temperature: float = 0.2

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        shares = empty_shares(total, patches.features())  # one for all pictures
        chosen = [covering(fill(shares, features, self.temperature), k) for features in patches.features()]
        return KeptTokens(torch.stack(chosen).sort(dim=1).values, total)


def empty_shares(rows: int, features: Tensor) -> Tensor:
    """Room for shares (rows, N) of features (B, N, C): float64, or, of more than `_LARGE` patches, float32."""
    count = features.shape[1]
    return torch.empty(rows, count, dtype=torch.double if count <= _LARGE else torch.float, device=features.device)


def fill(shares: Tensor, features: Tensor, temperature: float, whole: float | None = None) -> Tensor:
    """Write into shares (N, N) how far each row's patch is covered by each column's: softmax of cosine / temperature.

    In whole steps, so that sums of them are exact in float64 and what is equal but for rounding is a tie; in float32 shares
    have 24 bits. `whole` is the sum of a row in steps. No other matrix of that size is made.
    """
    count = len(features)
    steps = 2.0 ** min(40, 52 - count.bit_length())
    whole = steps if whole is None else whole
    for start, similar in cosine_rows(features):
        end = start + len(similar)
        shares[start:end, start:] = similar.sub_(1).div_(temperature).exp_().mul_(steps).round_()
        shares[end:, start:end] = shares[start:end, end:].T
    for rows in shares.split(max(1, _ROWS // count)):
        total = rows.sum(dim=1, keepdim=True, dtype=torch.double)
        # A patch without features is like nothing, itself included: all cover it alike.
        bare = total == 0
        rows.masked_fill_(bare, 1)
        total.masked_fill_(bare, count)
        rows.copy_((rows.double() if rows.dtype != torch.double else rows).mul_(whole / total).round_())
    return shares
