"""CDPruner: patches that are relevant and unlike each other. Dims: B pictures, N patches, K kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.kept import KeptTokens
from fastervlm.methods.similarity import cosines

# What the patches kept so far explain of a patch but for this share, they explain.
_NOTHING_NEW = 1e-6
_LEAST = 1e-6


@dataclass(frozen=True)
class CDPruner:
    """Keep the patches that a determinantal point process, conditioned on relevance, finds likeliest (arXiv 2506.10967).

    Its kernel is the cosine similarity of two patches times the relevance of both; patches are added one at a time, each where
    the determinant grows most. Relevance is brought to (0, 1] in each picture for itself. Without it the choice goes by
    features alone.

    Args:
        relevance: gives the relevance (B, N) of each patch of some pictures, in any unit; see `ClipRelevance`.
    """

    relevance: Callable[[ScoredPatches], Tensor] | None = None

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        similar = cosines(patches.features())
        relevance = torch.ones_like(patches.scores) if self.relevance is None else self.relevance(patches).detach()
        if relevance.shape != patches.scores.shape:
            raise UserError(
                f"relevance must be {tuple(patches.scores.shape)}, a number for each patch, not {tuple(relevance.shape)}."
            )
        chosen = likeliest(similar, scaled(relevance.to(similar)), k)
        return KeptTokens(chosen.sort(dim=1).values, total)


def scaled(relevance: Tensor) -> Tensor:
    """Relevance (B, N) brought to (0, 1] in each picture for itself."""
    low, high = relevance.aminmax(dim=1, keepdim=True)
    return (relevance - low + _LEAST) / (high - low + _LEAST)


def likeliest(similar: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(B, K) patches in the order of choice, given similarity (B, N, N) and relevance (B, N), both float64.

    The determinant of the kernel grows by the squared relevance of the patch added times what is left of it beside those kept
    already: its diagonal element in the incomplete Cholesky factor of the similarities (Chen et al., arXiv 1709.05135).
    """
    pictures = torch.arange(len(similar), device=similar.device)
    left = similar.diagonal(dim1=1, dim2=2).gt(0).double()
    factor = similar.new_empty(len(similar), k, similar.shape[1])
    weight, taken = relevance.square(), torch.zeros_like(left, dtype=torch.bool)
    chosen = []
    for step in range(k):
        # In float32 gains that are equal but for rounding tie, and the earlier patch goes first.
        best = (weight * left).float().masked_fill_(taken, -1).argmax(dim=1)
        chosen.append(best)
        taken[pictures, best] = True
        known, pivot = factor[:, :step], left[pictures, best][:, None]
        row = similar[pictures, best] - torch.bmm(known[pictures, :, best][:, None], known)[:, 0]
        row = row * pivot.rsqrt().masked_fill_(pivot == 0, 0)
        factor[:, step] = row
        left = left - row.square()
        left.masked_fill_(left < _NOTHING_NEW, 0)
    return torch.stack(chosen, dim=1)
