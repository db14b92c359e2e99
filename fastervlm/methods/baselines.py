"""Choices that look at no content: what every ranking has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from encoders import ScoredPatches, UserError
from fastervlm.selection.draws import mix
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class RandomTokens:
    """Keep patches drawn uniformly without replacement.

    The draw is a hash of the seed, the picture's own pixels and the patch: a picture keeps the same patches alone, in any
    batch, on any device and in any thread, and other pictures or seeds get other draws.
    Pixels that were prepared with other rounding, as another kind of CPU may do it, are another picture.
    """

    traits: ClassVar[Traits] = Traits(ordered=True, work="pruned", score_free=True)

    seed: int = 0

    def __post_init__(self) -> None:
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise UserError(f"seed={self.seed} is too large; give a number below 2 ** 63.")

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        rows, columns = patches.grid
        patch = torch.arange(rows * columns, device=patches.image_key.device)
        return KeptTokens.top(mix(mix(patches.image_key[:, None] + mix(patch + 1)) + self.seed), k)


@dataclass(frozen=True)
class UniformGrid:
    """Keep patches on an even lattice: exactly `k`, in rows as even as the numbers allow."""

    traits: ClassVar[Traits] = Traits(ordered=True, work="pruned", score_free=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches, the same in each picture."""
        rows, columns = patches.grid
        index = torch.tensor(lattice(rows, columns, k)).to(patches.cls_attention.device, non_blocking=True)
        return KeptTokens(index.expand(len(patches.cls_attention), -1), rows * columns)


def lattice(rows: int, columns: int, k: int) -> list[int]:
    """`k` distinct raster positions spread evenly over `rows` x `columns`, ascending."""
    lines = min(rows, k, max(math.ceil(k / columns), round(math.sqrt(k * rows / columns))))
    chosen: list[int] = []
    for line in range(lines):
        row = (2 * line + 1) * rows // (2 * lines)
        count = k * (line + 1) // lines - k * line // lines
        chosen += [row * columns + (2 * i + 1) * columns // (2 * count) for i in range(count)]
    return chosen
