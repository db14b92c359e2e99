"""SCOPE: patches that cover what is not covered yet, weighted by their saliency. Dims: B pictures, N patches, K kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from encoders import ScoredPatches
from fastervlm.methods.covering import covering
from fastervlm.methods.share import check_positive
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# Similarities in whole steps of 2 ** -32: sums over two million patches are exact.
_STEPS = 2.0**32


@dataclass(frozen=True)
class Scope:
    """Keep the patches that add most to what is covered, weighted by the attention of [CLS] (SCOPE, arXiv 2510.24214).

    A patch is covered as far as the most similar patch kept so far is like it, by the cosine of their features, and never less
    than 0. Each further patch is the one for which attention ** alpha, times what it adds to the sum over all patches, is
    largest; of equal ones the earlier. As in the paper, features are the tower's own, and so are scores.

    Args:
        alpha: how much attention weighs, above 0; the less, the more coverage decides alone.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"features"}), ordered=True)

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        similar = cosines(patches.features()).clamp_(min=0).mul_(_STEPS).round_()
        weight = _saliency(patches.scores.detach().to(similar), self.alpha)
        chosen = [covering(rows, k, own) for rows, own in zip(similar, weight, strict=True)]
        return KeptTokens(torch.stack(chosen).sort(dim=1).values, total)


def _saliency(scores: Tensor, alpha: float) -> Tensor:
    """Scores (B, N) float64 as shares of the highest of their picture, to the power of alpha."""
    highest = scores.amax(dim=1, keepdim=True)
    return (scores / highest.masked_fill(highest == 0, 1)) ** alpha
