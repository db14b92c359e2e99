"""Which patches of each picture were kept, and what stands for them. Dims: B pictures, N patches, K kept, C tower width."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError, UserTypeError


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The patches a method kept.

    Attributes:
        index: (B, K) int64 patch positions, ascending in each row: kept tokens stay in raster order.
        num_patches: N, how many there were.
        weights: (B, K, N) floating point, where kept tokens are mixtures: token j is the sum over patches i of weights[j, i]
            times the features of i, and stands at the place index[j]. None where each is the patch at its place.
        projected: the mixtures are of projected tokens, where there is a projector, and not of the features in front of it.
    """

    index: Tensor
    num_patches: int
    weights: Tensor | None = field(default=None, kw_only=True)
    projected: bool = field(default=False, kw_only=True)

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

    def rows(self, patches: ScoredPatches, *, cls: bool = False) -> Tensor:
        """What stands for the kept tokens (B, K, C): features of the patches that were scored, or mixtures of them.

        With `cls` [CLS] stands in front of them, (B, 1 + K, C); it is never mixed.
        """
        if self.weights is not None:
            features = patches.features(cls=cls)
            merged = mixed(self.weights, features[:, int(cls) :])
            return torch.cat((features[:, :1], merged), dim=1) if cls else merged
        # All patches without an index: the stock model's memory layout, and so exactly its rounding.
        return patches.features(None if self.index.shape[1] == self.num_patches else self.index, cls=cls)


def mixed(weights: Tensor, x: Tensor) -> Tensor:
    """weights (B, K, N) times x (B, N, C) as (B, K, C) in the dtype of x, summed in float64 and picture by picture.

    So a mixture does not depend on the rest of the batch.
    """
    pairs = zip(weights.to(x.device), x, strict=True)
    return torch.stack([(weight.double() @ row.double()).to(x.dtype) for weight, row in pairs])


def check_kept(kept: KeptTokens, pictures: int, patches: int, *, count: int | None = None, read: bool = True) -> None:
    """Refuse what a method returned for pictures of so many patches, if it is anything else than a choice among them.

    Args:
        kept: what it returned.
        pictures: B.
        patches: N.
        count: how many tokens it was asked for; without it any number is taken, the same of each picture.
        read: look at the positions themselves, for which a device is waited for.
    """
    if not isinstance(kept, KeptTokens) or kept.index.dim() != 2 or len(kept.index) != pictures:
        raise UserError(f"A method must return KeptTokens with an index of shape ({pictures}, K) for {pictures} pictures.")
    if kept.index.is_floating_point() or kept.index.is_complex() or kept.index.dtype == torch.bool:
        raise UserTypeError(f"An index holds whole numbers, patch positions, but this one is {kept.index.dtype}.")
    bounds = F.pad(kept.index, (1, 0), value=-1), F.pad(kept.index, (0, 1), value=patches)
    if kept.num_patches != patches or (read and bool((bounds[0] >= bounds[1]).any())):
        raise UserError(f"A method must return positions of the {patches} patches, ascending and each once; sort its index.")
    if count is not None and kept.index.shape[1] != count:
        raise UserError(
            f"A method asked for {count} tokens returned {kept.index.shape[1]}; return as many as asked for, or say by "
            "traits = Traits(other_counts=True) that it keeps other numbers."
        )
    shape = (*kept.index.shape, patches)
    if kept.weights is not None and (kept.weights.shape != shape or not kept.weights.is_floating_point()):
        raise UserError(
            f"A method that mixes patches must return floating-point weights of shape {shape}, a row for each token."
        )


def waits(x: Tensor) -> bool:
    """Whether to read a value of x would make the host wait, or cannot be done at all while `torch.compile` traces."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()
