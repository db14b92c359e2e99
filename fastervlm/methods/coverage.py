"""Coverage: patches that between them are like all patches of the picture, whatever any attention says. Dims: N patches."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError, UserTypeError
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# Shares are whole numbers of steps of 2 ** -40, so that sums of them are exact and what is equal but for rounding is a tie.
_STEPS = 2.0**40


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
        if not isinstance(self.temperature, numbers.Real) or isinstance(self.temperature, bool):
            raise UserTypeError(f"temperature={self.temperature!r} is no number; give one above 0, such as 0.2.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be above 0, and finite.")

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        chosen = [_greedy(_shares(similar, self.temperature), k) for similar in cosines(patches.features())]
        return KeptTokens(torch.stack(chosen).sort(dim=1).values, total)


def _shares(similar: Tensor, temperature: float) -> Tensor:
    """Softmax of similar (N, N) / temperature over each row, in whole steps; float64."""
    weights = ((similar - similar.amax(dim=1, keepdim=True)) / temperature).exp()
    weights = weights.mul_(_STEPS).round_()
    return (weights / weights.sum(dim=1, keepdim=True)).mul_(_STEPS).round_()


def _greedy(shares: Tensor, k: int) -> Tensor:
    """(k,) int64: the columns of shares (N, N), one by one, that add most to the sum over rows of their largest share."""
    covered, chosen, larger = torch.zeros_like(shares[0]), [], torch.empty_like(shares)
    taken = torch.zeros_like(covered)
    for _ in range(k):
        torch.maximum(shares, covered[:, None], out=larger)
        best = (larger.sum(dim=0) + taken).argmax(dim=0, keepdim=True)
        chosen.append(best)
        taken.index_fill_(0, best, -torch.inf)
        covered = covered.maximum(shares.index_select(1, best)[:, 0])
    return torch.cat(chosen)
