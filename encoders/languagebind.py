"""LanguageBind's towers, read up to their feature block: frames see each other first, then each is scored by its own [CLS]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders import languagebind_tower
from encoders.hf_clip import HfBlock, HfClipEncoder
from encoders.tower import check_loaded


class LanguageBindEncoder(HfClipEncoder):
    """A `LanguageBindVisionModel`; one with attention over time takes whole clips.

    In the feature block the attention over time runs for all tokens. The scores are the attention over each frame of its own
    [CLS], and what follows is computed for the kept patches alone.
    """

    @property
    def takes_clips(self) -> bool:
        """Whether pixel_values are clips (B, F, 3, H, W), whose frames are then B * F rows."""
        return self.tower.takes_clips

    def _pictures(self, pixel_values: Tensor) -> Tensor:
        return self.tower.fold(pixel_values)[1]

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        return super()._grid(self._pictures(pixel_values), interpolate)

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, int]:
        frames, pictures = self.tower.fold(pixel_values)
        return self.tower.embed(pictures, interpolate), frames

    def _run(self, block: nn.Module, hidden: Tensor, extra: Any) -> Tensor:
        return self.tower.run(block, hidden, extra)

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> FramesBlock:
        return FramesBlock(self.blocks[block], hidden, extra)


class FramesBlock:
    """A `LanguageBindBlock`, stopped after the keys of the attention over each frame, so many frames at a time as it runs."""

    def __init__(self, block: nn.Module, hidden: Tensor, frames: int) -> None:
        check_loaded(block)
        hidden = block.over_time(hidden, frames)  # type: ignore[operator]
        count = max(1, languagebind_tower.CHUNK // hidden.shape[1])
        self.parts: Sequence[HfBlock] = [HfBlock(block, some, 1) for some in hidden.split(count)]

    def cls_attention(self) -> Tensor:
        """(B * F, M, N) float32."""
        return torch.cat([part.cls_attention() for part in self.parts])

    def received(self) -> Tensor:
        """(B * F, M, N) float32."""
        return torch.cat([part.received() for part in self.parts])

    def keys(self) -> Tensor:
        """(B * F, M, N, d): the keys of the patches in the attention over each frame."""
        return torch.cat([part.keys() for part in self.parts])

    def finish(self, index: Tensor | None, cls: bool = False) -> Tensor:
        """Output (B * F, K, C) for the patches at index (B * F, K), or (B * F, N, C) for all; with `cls` [CLS] in front."""
        if index is None:
            return torch.cat([part.finish(None, cls) for part in self.parts])
        rows = index.split([len(part.hidden) for part in self.parts])
        return torch.cat([part.finish(row, cls) for part, row in zip(self.parts, rows, strict=True)])
