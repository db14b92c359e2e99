"""The last block of a tower that packs pictures, stopped after its keys.

Dims: S patches of all pictures, C tower width, M heads, d head width; B frames of one size, N patches of each, K wanted.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import received_attention
from encoders.block import merged, third_of


class PackedBlock:
    """A `Qwen2VLVisionBlock`, `Qwen2_5_VLVisionBlock` or `Qwen3VLVisionBlock`: attention with rotary positions, then an MLP.

    Attributes:
        hidden: (S, C), the input of the block.
        cosines: (S, d), by which queries and keys are turned.
        sines: the same.
    """

    def __init__(self, block: nn.Module, hidden: Tensor, cosines: Tensor, sines: Tensor) -> None:
        self.block: Any = block
        self.attention: Any = block.attn
        self.hidden, self.cosines, self.sines = hidden, cosines, sines

    @cached_property
    def normed(self) -> Tensor:
        """(S, C), what attention reads."""
        return self.block.norm1(self.hidden)

    @cached_property
    def key(self) -> Tensor:
        """(S, M, d), turned."""
        return self._turned(self._part(self.normed, 1), self.cosines, self.sines)

    def received(self, places: Tensor) -> Tensor:
        """(B, M, N) float32: what each patch gets from all of its frame, where the block sees whole frames.

        Args:
            places: (B, N) the rows of some frames' patches.
        """
        query = self._turned(self._part(self.normed, 0), self.cosines, self.sines)
        return received_attention(query[places].transpose(1, 2), self._keys(places), self._scale)

    def keys(self, places: Tensor) -> Tensor:
        """(B, M, N, d) the keys of patches at places (B, N)."""
        return self._keys(places)

    def finish(self, places: Tensor, index: Tensor, windows: Tensor | None) -> Tensor:
        """The block's output (B, K, C) for some patches of each frame.

        Args:
            places: (B, N) the rows of the frames' patches.
            index: (B, K) the patches that are wanted.
            windows: (B, N) the window of each patch, where the block sees windows only.
        """
        rows = places.gather(1, index)
        query = self._turned(self._part(self.normed[rows], 0), self.cosines[rows], self.sines[rows])
        value = self._part(self.normed, 2)[places].transpose(1, 2)
        seen = None
        if windows is not None:
            seen = (windows.gather(1, index)[:, :, None] == windows[:, None, :])[:, None]
        dropout = self.attention.attention_dropout if self.block.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), self._keys(places), value, attn_mask=seen, dropout_p=dropout, scale=self._scale
        )
        hidden = self.hidden[rows] + self._out(merged(mixed))
        return hidden + self.block.mlp(self.block.norm2(hidden))

    def _keys(self, places: Tensor) -> Tensor:
        """Those that attention reads here."""
        return self.key[places].transpose(1, 2)

    @property
    def _scale(self) -> float:
        return self.attention.scaling

    def _out(self, mixed: Tensor) -> Tensor:
        """(..., C) of what all heads mixed."""
        return self.attention.proj(mixed)

    def _part(self, normed: Tensor, part: int) -> Tensor:
        """Queries (part 0), keys (1) or values (2) (..., M, d) of some rows (..., C), not turned."""
        return third_of(self.attention.qkv, normed, part).unflatten(-1, (self.attention.num_heads, -1))

    def _turned(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """x (..., M, d) turned by the positions of its rows, in float32 as the tower does it."""
        first, second = x.float().chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return (x.float() * cosines[..., None, :].float() + turned * sines[..., None, :].float()).to(x.dtype)
