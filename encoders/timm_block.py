"""One block of a timm vision transformer in two halves, with whatever of timm's options it was made with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.block import FeatureBlock, heads, kind, merged, third_of
from encoders.errors import UserTypeError

_POST_NORM = ("timm.ResPostBlock", "timm.EvaBlockPostNorm")
_BLOCKS = ("timm.Block", "timm.EvaBlock", *_POST_NORM)
_ATTENTIONS = ("timm.Attention", "timm.AttentionRope", "timm.EvaAttention")


class TimmBlock(FeatureBlock):
    """A `Block`, `ResPostBlock`, `EvaBlock` or `EvaBlockPostNorm`.

    Attributes:
        rope: (N, 2 d) or (M, N, 2 d), sines and cosines of each patch; None without rotary positions.
    """

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int, rope: Tensor | None) -> None:
        self.attention: Any = block.attn
        self.scale, self.dropout = self.attention.scale, self.attention.attn_drop.p
        self.rope = rope
        self.post_norm = kind(type(block)) in _POST_NORM
        super().__init__(block, hidden, prefix)

    def _norm(self, hidden: Tensor) -> Tensor:
        return hidden if self.post_norm else self.block.norm1(hidden)

    def _query(self, normed: Tensor) -> Tensor:
        return self.attention.q_norm(heads(self._part(normed, 0), self.attention.num_heads))

    def _key(self) -> Tensor:
        return self._shared(self.attention.k_norm(heads(self._part(self.normed, 1), self._key_heads)))

    def _value(self) -> Tensor:
        return self._shared(heads(self._part(self.normed, 2), self._key_heads))

    def _part(self, normed: Tensor, part: int) -> Tensor:
        """Queries (part 0), keys (1) or values (2) of some rows (B, K, C), heads not split."""
        attention = self.attention
        if attention.qkv is None:
            return (attention.q_proj, attention.k_proj, attention.v_proj)[part](normed)
        if getattr(attention, "q_bias", None) is None:
            return third_of(attention.qkv, normed, part)
        # EVA keeps the bias of its fused projection beside it, in three parts, and reads the weight itself.
        bias = (attention.q_bias, attention.k_bias, attention.v_bias)[part]
        if attention.qkv_bias_separate:
            return third_of(attention.qkv, normed, part) + bias
        return F.linear(normed, attention.qkv.weight.chunk(3)[part], bias)

    @property
    def _key_heads(self) -> int:
        return getattr(self.attention, "num_kv_heads", self.attention.num_heads)

    def _shared(self, x: Tensor) -> Tensor:
        """Keys or values (B, M', T, d) as (B, M, T, d): grouped queries share theirs."""
        groups = self.attention.num_heads // self._key_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)

    def _placed(self, x: Tensor, index: Tensor | None) -> Tensor:
        if self.rope is None:
            return x
        half = self.attention.rotate_half
        if index is not None:
            return _rotate(x, _rope_rows(self.rope, index), half)
        prefix, patches = x[:, :, : self.prefix], x[:, :, self.prefix :]
        return torch.cat([prefix, _rotate(patches, self.rope, half)], dim=2)

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        block, attention = self.block, self.attention
        merge = attention.norm(merged(mixed))
        if attention.gate is not None:
            merge = merge * attention.gate(normed).sigmoid()
        hidden = residual + block.drop_path1(self._scaled(attention.proj_drop(attention.proj(merge)), 1))
        second = block.mlp(hidden if self.post_norm else block.norm2(hidden))
        return hidden + block.drop_path2(self._scaled(second, 2))

    def _scaled(self, x: Tensor, branch: int) -> Tensor:
        """The output (B, K, C) of attention (branch 1) or MLP (2) as it is added to the residual: normed or scaled."""
        if self.post_norm:
            return getattr(self.block, f"norm{branch}")(x)
        if hasattr(self.block, "ls1"):
            return getattr(self.block, f"ls{branch}")(x)
        gamma = getattr(self.block, f"gamma_{branch}")
        return x if gamma is None else gamma * x


def _rope_rows(rope: Tensor, index: Tensor) -> Tensor:
    """Rows of a rotary table (..., N, 2 d) at index (B, K), as (B, 1 or M, K, 2 d)."""
    table = rope if rope.dim() == 3 else rope[None]
    return table[:, index.to(rope.device, torch.long)].transpose(0, 1)


def _rotate(x: Tensor, rope: Tensor, half: bool) -> Tensor:
    """x (B, M, K, d) turned by the sines and cosines of rope (..., K, 2 d); pairs are halves apart, or neighbours."""
    sine, cosine = rope.chunk(2, dim=-1)
    if half:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cosine + turned * sine).to(x.dtype)


def check_block(block: Any) -> None:
    """Refuse a block whose second half would not be computed as the block itself does."""
    attention = getattr(block, "attn", None)
    if kind(type(block)) not in _BLOCKS or kind(type(attention)) not in _ATTENTIONS:
        raise UserTypeError(
            f"Blocks of class {kind(type(block))} with attention of class {kind(type(attention))} cannot be stopped half-way; "
            f"{', '.join(_BLOCKS)} with {', '.join(_ATTENTIONS)} can."
        )
