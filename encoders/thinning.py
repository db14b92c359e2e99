"""Patches that leave inside a tower: which are left, and how all others look from outside.

Dims: B pictures, M heads, N patches, S of them left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import ScoredPatches
from encoders.errors import UserError

GONE = -1.0


@dataclass(frozen=True, eq=False)
class Survivors:
    """The patches that are left of each picture.

    Attributes:
        places: (B, S) int64, their positions among all N, ascending.
        num_patches: N.
    """

    places: Tensor
    num_patches: int

    @classmethod
    def all(cls, pictures: int, num_patches: int, device: torch.device) -> Survivors:
        """Those of pictures which no patch has left yet."""
        return cls(torch.arange(num_patches, device=device).expand(pictures, -1), num_patches)

    @property
    def count(self) -> int:
        """S."""
        return self.places.shape[1]

    def take(self, index: Tensor) -> Survivors:
        """Those at an index (B, S') among those that are left."""
        return Survivors(self.places.gather(1, index), self.num_patches)

    def local(self, index: Tensor) -> Tensor:
        """Positions among the survivors (B, K) of patches at an index (B, K) among all N, which must be survivors."""
        order = torch.arange(self.count, device=self.places.device).expand_as(self.places)
        back = torch.zeros(len(self.places), self.num_patches, dtype=torch.long, device=self.places.device)
        return back.scatter(1, self.places, order).gather(1, index.to(self.places.device))

    def marked(self, scores: Tensor, last: Tensor | None) -> Tensor:
        """Ranks of the survivors by their scores (B, S), none negative; all below the others where `last` (B, N) is true."""
        if last is None:
            return scores
        ranks = scores.abs().view(torch.int32)  # the bits of numbers from 0 up are in the order of the numbers
        below = ranks + torch.iinfo(torch.int32).min
        return torch.where(last.to(scores.device).gather(1, self.places.to(scores.device)), below, ranks)


def finish_all_but(half: Any, prefix: int, index: Tensor) -> Tensor:
    """Output (B, P + S, C) of a block, stopped half-way: its P tokens in front of the patches, and those at an index (B, S)."""
    if prefix == 1:
        return half.finish(index, True)
    half.prefix = 1  # registers stand behind [CLS] like patches, and all of them stay
    registers = torch.arange(prefix - 1, device=index.device).expand(len(index), -1)
    return half.finish(torch.cat((registers, index + prefix - 1), dim=1), True)


def best(scores: Tensor, count: int) -> Tensor:
    """(B, S) positions of the highest of scores (B, N), ascending; of equal scores the earlier."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


def contrast(pixel_values: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """How much the pixels of each patch vary, (B, N) float32: their standard deviation, summed over the channels.

    Args:
        pixel_values: (B, 3, H, W); what a tower cuts off at the edges does not count, and what it pads is zero.
        grid: rows and columns of the patches.
        patch_size: height and width of a patch in pixels.
    """
    (rows, columns), (high, wide) = grid, patch_size
    pixels = pixel_values.detach().float()[..., : rows * high, : columns * wide]
    pixels = F.pad(pixels, (0, columns * wide - pixels.shape[-1], 0, rows * high - pixels.shape[-2]))
    patches = pixels.unflatten(-1, (columns, wide)).unflatten(-3, (rows, high))  # (B, 3, rows, high, columns, wide)
    return patches.std(dim=(-3, -1), correction=0).sum(dim=1).flatten(1)


def without_the_rest(patches: ScoredPatches, survivors: Survivors) -> ScoredPatches:
    """Patches of survivors alone, as patches among all N; where nothing has left they are given back as they are."""
    if survivors.count == survivors.num_patches:
        return patches
    attention, finish = patches.cls_attention, patches.finish
    places = survivors.places.to(attention.device)
    every = attention.new_full((*attention.shape[:2], survivors.num_patches), GONE)

    def finished(index: Tensor | None, cls: bool = False) -> Tensor:
        if index is None:
            raise UserError("Patches that left inside the tower have no features; ask for those that are left, or keep all.")
        return finish(survivors.local(index), cls)

    every = every.scatter(2, places[:, None].expand(-1, attention.shape[1], -1), attention)
    return replace(patches, cls_attention=every, finish=finished, block_keys=None, other_blocks={})
