"""Which patches of each picture were kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import UserError


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The patches a method kept.

    Attributes:
        index: (B, K) int64 patch positions, ascending in each row: kept tokens stay in raster order.
        num_patches: N, how many there were.
    """

    index: Tensor
    num_patches: int

    @classmethod
    def top(cls, scores: Tensor, k: int) -> KeptTokens:
        """The `k` highest of scores (B, N) in each row; of equal scores the earlier patch is kept."""
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return cls(order[:, :k].sort(dim=1).values, scores.shape[1])

    @property
    def mask(self) -> Tensor:
        """(B, N) bool, true where a patch was kept."""
        empty = torch.zeros(len(self.index), self.num_patches, dtype=torch.bool, device=self.index.device)
        return empty.scatter_(1, self.index, True)

    def gather(self, x: Tensor) -> Tensor:
        """The kept rows of x (B, N, ...), as (B, K, ...)."""
        index = self.index.to(x.device)
        return x[torch.arange(len(index), device=x.device)[:, None], index]


def check_kept(kept: KeptTokens, pictures: int, patches: int) -> None:
    """Refuse what a method returned for pictures of so many patches, if it is anything else than a choice among them.

    A method may keep more or fewer than it was asked for, the same number of each picture.
    """
    if not isinstance(kept, KeptTokens) or kept.index.dim() != 2 or len(kept.index) != pictures:
        raise UserError(f"A method must return KeptTokens with an index of shape ({pictures}, K) for {pictures} pictures.")
    bounds = F.pad(kept.index, (1, 0), value=-1), F.pad(kept.index, (0, 1), value=patches)
    if kept.num_patches != patches or bool((bounds[0] >= bounds[1]).any()):
        raise UserError(f"A method must return positions of the {patches} patches, ascending and each once; sort its index.")
