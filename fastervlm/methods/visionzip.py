"""VisionZip: dominant patches as they are, the others merged. Dims: B pictures, N patches, R left over, T contextual tokens."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError, UserTypeError
from fastervlm.methods.share import check_share
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class VisionZip:
    """Keep dominant patches by [CLS] attention, and merge all others into contextual tokens (arXiv 2412.04467).

    Contextual tokens stand at even steps among the patches that are not dominant; each of the rest joins the one with the most
    similar key, keys being those of the feature block, averaged over heads. As in the authors' code, the token is the sum of
    its own patch and of the mean of those that joined it. There [CLS] is one of the dominant tokens; here it is never
    among them, and all K are patches. A contextual token stands at the place of its own patch.

    Args:
        contextual: how many of the K tokens are contextual: a count (never more than K), or their share of K, rounded; the
            paper has 10 of 64.
    """

    traits: ClassVar[Traits] = Traits(reads=frozenset({"keys"}), ordered=True)

    contextual: int | float = 10 / 64

    def __post_init__(self) -> None:
        if not isinstance(self.contextual, numbers.Integral):
            check_share("contextual", self.contextual)
        elif isinstance(self.contextual, bool) or self.contextual < 0:
            raise (UserTypeError if isinstance(self.contextual, bool) else UserError)(
                f"contextual={self.contextual} is no count of tokens; give a whole number, or a share of all tokens."
            )

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` tokens of each picture, the contextual ones as mixtures."""
        total = patches.scores.shape[1]
        count = self._contextual(k)
        if not count or k >= total:
            return KeptTokens.top(patches.scores, k)
        dominant = KeptTokens.top(patches.scores, k - count)
        left = dominant.mask.long().argsort(dim=1, stable=True)[:, : total - k + count]
        step = left.shape[1] // count
        target = left[:, : step * count : step]
        mixtures = _mixtures(patches, left, target)
        index, order = torch.cat((dominant.index, target), dim=1).sort(dim=1)
        weights = torch.cat((F.one_hot(dominant.index, total).to(mixtures), mixtures), dim=1)
        return KeptTokens(index, total, weights=weights.gather(1, order[:, :, None].expand(-1, -1, total)))

    def _contextual(self, k: int) -> int:
        if isinstance(self.contextual, numbers.Integral):
            return min(int(self.contextual), k)
        return int(k * self.contextual + 0.5)


def _mixtures(patches: ScoredPatches, left: Tensor, target: Tensor) -> Tensor:
    """(B, T, N) float32: the weights of the patches in contextual tokens at target (B, T), others being left (B, R)."""
    pictures = torch.arange(len(left), device=left.device)[:, None]
    keys = patches.keys().detach().double().mean(dim=1).to(left.device)
    nearest = cosines(keys[pictures, left], keys[pictures, target]).argmax(dim=2)
    joined = F.one_hot(nearest, target.shape[1]).float().transpose(1, 2)
    own = F.one_hot(target, patches.scores.shape[1]).float()
    members = torch.zeros_like(own).scatter_(2, left[:, None].expand_as(joined), joined)
    members[pictures, :, target] = 0  # a target joins nobody
    return own + members / members.sum(dim=2, keepdim=True).clamp(min=1)
