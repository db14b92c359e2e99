"""What was kept of a picture cut into crops. Dims: N patches of a crop, T visual tokens before the language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastervlm.families.llava_next.crops import NEWLINE, CropLayout
from fastervlm.selection.trace import ImageTrace, Trace


@dataclass(frozen=True, eq=False)
class CropsTrace(Trace):
    """One picture of the last pruned call, cut into crops (LLaVA-NeXT).

    Attributes:
        scores: (crops, N) float32, the [CLS] attention of each patch within its crop, mean over heads; 0 in crops that were not
            encoded.
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
    def encoded(self) -> Tensor:
        """(crops,) bool, false of crops that the overview left out, which never went through the tower."""
        return self.scores.any(dim=1)

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
