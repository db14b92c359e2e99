"""What a pruned call kept, for pictures and debugging.

Dims: N patches of a crop or picture, K kept, T visual tokens before the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastervlm.anyres import NEWLINE, CropLayout


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """One picture of the last pruned call, or one crop of it.

    Attributes:
        scores: (N,) float32, the [CLS] attention of each patch, mean over heads, whatever the method chose by.
        index: (K,) int64, the kept patches, ascending.
        grid: rows and columns of the patches; rows * columns == N.
        layout: how the kept tokens stand before the language model; "flat": in raster order, nothing between.
    """

    scores: Tensor
    index: Tensor
    grid: tuple[int, int]
    layout: str = "flat"

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model."""
        return len(self.index)

    @property
    def mask(self) -> Tensor:
        """(rows, columns) bool, true where a patch was kept."""
        mask = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.bool)
        mask[self.index.cpu()] = True
        return mask.view(self.grid)


@dataclass(frozen=True, eq=False)
class CropsTrace:
    """One picture of the last pruned call, cut into crops (LLaVA-NeXT).

    Attributes:
        scores: (crops, N) float32, the [CLS] attention of each patch within its crop, mean over heads.
        mask: (crops, N) bool, true where a patch was kept; the first crop is the overview.
        tokens: (T,) int64, the visual tokens in the order of the prompt: crop * N + patch, or -1 for a newline.
        cut: how the picture was cut.
        layout: "native" or "paper".
    """

    scores: Tensor
    mask: Tensor
    tokens: Tensor
    cut: CropLayout
    layout: str

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model, newlines included."""
        return len(self.tokens)

    @property
    def crops(self) -> list[ImageTrace]:
        """Each crop on its own, the overview first."""
        grid = (self.cut.side, self.cut.side)
        kept = [mask.nonzero().flatten() for mask in self.mask]
        return [ImageTrace(scores, index, grid, self.layout) for scores, index in zip(self.scores, kept, strict=True)]

    @property
    def crop(self) -> Tensor:
        """(T,) the crop that each token comes from, 0 for the overview; -1 for a newline."""
        return self.tokens.div(self.cut.side**2, rounding_mode="floor")  # of -1 too

    @property
    def boxes(self) -> Tensor:
        """(T, 4) float32: left, top, right, bottom of each token's patch, in pixels of the picture; NaN for a newline.

        A patch at the border of the picture may reach into the padding, outside the picture.
        """
        side, tokens = self.cut.side, self.tokens.cpu()
        patch = tokens.clamp(min=0) % side**2
        corner = torch.stack((patch % side, patch // side), dim=1)
        regions = self.cut.regions()[self.crop.cpu().clamp(min=0)]
        start, unit = regions[:, :2], (regions[:, 2:] - regions[:, :2]) / side
        boxes = torch.cat((start + corner * unit, start + (corner + 1) * unit), dim=1)
        return boxes.masked_fill((tokens == NEWLINE)[:, None], float("nan"))


@dataclass(frozen=True, eq=False)
class ClipTrace:
    """One clip of the last pruned call (Video-LLaVA). Dims: F frames.

    Attributes:
        scores: (F, N) float32, the [CLS] attention of each patch within its frame, mean over heads.
        mask: (F, N) bool, true where a patch was kept.
        grid: rows and columns of the patches of a frame; rows * columns == N.
        keep_cls: whether the [CLS] token of each frame was kept too, in front of its patches.
        layout: how the kept tokens stand before the language model; "flat": frame after frame, each in raster order.
    """

    scores: Tensor
    mask: Tensor
    grid: tuple[int, int]
    keep_cls: bool
    layout: str = "flat"

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model, those of [CLS] included."""
        return int(self.mask.sum()) + len(self.mask) * self.keep_cls

    @property
    def frames(self) -> list[ImageTrace]:
        """The patches of each frame on its own."""
        kept = [mask.nonzero().flatten() for mask in self.mask]
        return [ImageTrace(scores, index, self.grid, self.layout) for scores, index in zip(self.scores, kept, strict=True)]


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """One prompt of the last call that was pruned inside the language model. Dims: n visual tokens of all its pictures, K kept.

    Attributes:
        scores: (n,) float32, what the method ranked by; 0 for tokens that were gone already.
        index: (K,) int64, the kept tokens among the visual tokens of the prompt, ascending.
        layer: the first layer that sees these only.
    """

    scores: Tensor
    index: Tensor
    layer: int

    @property
    def num_tokens(self) -> int:
        """How many visual tokens that layer and all behind it see."""
        return len(self.index)


Trace = ImageTrace | CropsTrace
