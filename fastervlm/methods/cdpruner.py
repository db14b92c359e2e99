"""CDPruner: patches that are relevant and unlike each other. Dims: B pictures, N patches, K kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from encoders import ScoredPatches, UserError, UserTypeError
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# A patch of which those kept leave no more than this share unexplained (its squared sine to their span) adds nothing.
_NOTHING_NEW = 1e-6
# The relevance of the least relevant patch, where the most relevant one has 1.
_LEAST = 1e-6


@dataclass(frozen=True)
class CDPruner:
    """Keep the patches that a determinantal point process, conditioned on relevance, finds likeliest (arXiv 2506.10967).

    Its kernel is the cosine similarity of two patches times the relevance of both; patches are added one at a time, each where
    the determinant grows most. Relevance is scaled to (0, 1] within each picture. Without it the features alone
    decide. The authors compare features behind the projector; here the tower's are compared, so that only what is kept
    is projected. If more patches are kept than the features have dimensions, the determinant is zero whatever is added. The
    paper says nothing about that; here the most relevant patch goes first, then the one with most [CLS] attention.

    Args:
        relevance: gives the relevance (B, N) of each patch of some pictures, in any unit; see `ClipRelevance`.
    """

    relevance: Callable[[ScoredPatches], Tensor] | None = None

    def __post_init__(self) -> None:
        given = self.relevance
        if given is not None and (isinstance(given, (type, PreTrainedModel)) or not callable(given)):
            named = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
            raise UserTypeError(
                f"relevance must be a function of patches, such as ClipRelevance(clip, tokenizer), not {named}."
            )

    @property
    def traits(self) -> Traits:
        """Relevance is taken to be that to a question."""
        if self.relevance is not None:
            return Traits(reads=frozenset({"features", "question"}), ordered=True)
        return Traits(reads=frozenset({"features"}), ordered=True, score_free=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        similar = cosines(patches.features())
        relevance = torch.ones_like(patches.scores) if self.relevance is None else checked(self.relevance(patches), patches)
        chosen = likeliest(similar, scaled(relevance.to(similar)), patches.scores.detach().to(similar.device), k)
        return KeptTokens(chosen.sort(dim=1).values, total)


def checked(relevance: object, patches: ScoredPatches) -> Tensor:
    """Relevance (B, N) as it was given, refused here if it is anything else than a number for each patch."""
    shape = tuple(patches.scores.shape)
    if not isinstance(relevance, Tensor):
        raise UserTypeError(f"relevance must give a tensor {shape}, a number for each patch, not a {type(relevance).__name__}.")
    if relevance.shape != shape:
        raise UserError(f"relevance must be {shape}, a number for each patch, not {tuple(relevance.shape)}.")
    if not bool(relevance.isfinite().all()):
        raise UserError("relevance holds numbers that are infinite or undefined; give finite ones.")
    return relevance.detach()


def scaled(relevance: Tensor) -> Tensor:
    """Relevance (B, N) brought to (0, 1] in each picture for itself."""
    low, high = relevance.aminmax(dim=1, keepdim=True)
    span = high - low
    share = (relevance - low) / span.masked_fill(span == 0, 1)
    return ((share + _LEAST) / (1 + _LEAST)).masked_fill(span == 0, 1)


def likeliest(similar: Tensor, relevance: Tensor, scores: Tensor, k: int) -> Tensor:
    """(B, K) patches in the order of choice, given similarity (B, N, N) and relevance (B, N), both float64, and scores (B, N).

    The determinant of the kernel grows by the squared relevance of the patch added times what is left of it beside those kept
    already: its diagonal element in the incomplete Cholesky factor of the similarities (Chen et al., arXiv 1709.05135).
    """
    pictures = torch.arange(len(similar), device=similar.device)
    left = similar.diagonal(dim1=1, dim2=2).gt(0).double()
    factor = similar.new_empty(len(similar), k, similar.shape[1])
    weight, taken, last = relevance.square(), torch.zeros_like(left, dtype=torch.bool), _last(relevance, scores)
    chosen = []
    for step in range(k):
        # In float32 gains that are equal but for rounding tie, and the earlier patch goes first.
        gain = (weight * left).float()
        best = torch.where(gain > 0, gain, last).masked_fill_(taken, -1).argmax(dim=1)
        chosen.append(best)
        taken[pictures, best] = True
        known, pivot = factor[:, :step], left[pictures, best][:, None]
        row = similar[pictures, best] - torch.bmm(known[pictures, :, best][:, None], known)[:, 0]
        row = row * pivot.rsqrt().masked_fill_(pivot == 0, 0)
        factor[:, step] = row
        left = left - row.square()
        left.masked_fill_(left < _NOTHING_NEW, 0)
    return torch.stack(chosen, dim=1)


def _last(relevance: Tensor, scores: Tensor) -> Tensor:
    """(B, N) float32 in (-1, 0): the order in which patches without gain follow, the highest first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, relevance.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return -(order.argsort(dim=1) + 1) / (order.shape[1] + 1)
