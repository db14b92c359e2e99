"""What was kept of a clip. Dims: F frames, N patches of a frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fastervlm.selection.trace import ImageTrace, Trace


@dataclass(frozen=True, eq=False)
class ClipTrace(Trace):
    """One clip of the last pruned call (Video-LLaVA). Dims: F frames.

    Attributes:
        scores: (F, N) float32, the [CLS] attention of each patch within its frame, mean over heads.
        mask: (F, N) bool, true where a patch was kept.
        grid: rows and columns of the patches of a frame; rows * columns == N.
        keep_cls: whether the [CLS] token of each frame was kept too, in front of its patches.
        shows: what of a frame its grid covers, as in `ImageTrace`.
        shown: (F,) int64, for each frame the one whose tokens it shows: itself where it was encoded. None where all were; see
            `fastervlm.EncoderSchedule`.
        newlines: how many newline tokens end the clip.
        layout: how the kept tokens stand before the language model; "flat": frame after frame, each in raster order.
    """

    scores: Tensor
    mask: Tensor
    grid: tuple[int, int]
    keep_cls: bool
    shown: Tensor | None = field(default=None, kw_only=True)
    newlines: int = field(default=0, kw_only=True)
    shows: Literal["square", "whole", "part"] = field(default="square", kw_only=True)
    layout: str = "flat"

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model, those of [CLS] and newlines included."""
        return int(self.mask.sum()) + len(self.mask) * self.keep_cls + self.newlines

    @property
    def frames(self) -> list[ImageTrace]:
        """The patches of each frame on its own."""
        kept = [mask.nonzero().flatten() for mask in self.mask]
        told: dict[str, Any] = {"grid": self.grid, "layout": self.layout, "shows": self.shows}
        return [ImageTrace(scores, index, **told) for scores, index in zip(self.scores, kept, strict=True)]
