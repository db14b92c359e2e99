"""CLIP and SigLIP towers of transformers, bare or inside a LLaVA.

Only submodules are called, never the weights of a block read, so that offloaded and quantised towers work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from encoders.base import cls_row
from encoders.block import FeatureBlock, HalfBlock, heads, merged, third
from encoders.errors import UserError
from encoders.tower import TowerEncoder, check_loaded, check_pixels, check_size


class HfClipEncoder(TowerEncoder):
    """A `CLIPVisionModel`, scored by [CLS], or a `SiglipVisionModel`, scored by the probe of its pooling head."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The tower's blocks, in their order."""
        return self.tower.encoder.layers

    @property
    def prefix(self) -> int:
        """One, [CLS], for CLIP; none for SigLIP."""
        return int(hasattr(self.tower.embeddings, "class_embedding"))

    @property
    def thins(self) -> bool:
        """True for CLIP as transformers has it."""
        return type(self) is HfClipEncoder and self.prefix == 1

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.tower.config.patch_size, self.tower.config.patch_size

    @property
    def scores(self) -> tuple[str, ...]:
        """What this tower can score its patches by."""
        pool = isinstance(getattr(self.tower, "head", None), nn.Module)
        return ("cls",) * self.prefix + ("pool",) * pool

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        config, patch = self.tower.config, self.tower.config.patch_size
        height, width = check_pixels(pixel_values, config.num_channels)
        if not interpolate:
            check_size((height, width), (config.image_size, config.image_size), "pass interpolate_pos_encoding=True")
        if min(height, width) < patch:
            raise UserError(f"Pictures of {height} x {width} pixels are smaller than one patch of {patch} x {patch}.")
        return height // patch, width // patch

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        hidden = self.tower.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
        return (self.tower.pre_layrnorm(hidden) if self.prefix else hidden), None

    def _run(self, block: nn.Module, hidden: Tensor, extra: Any) -> Tensor:
        return block(hidden, None)

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> HalfBlock:
        return HfBlock(self.blocks[block], hidden, self.prefix)

    def _probe_attention(self, hidden: Tensor) -> Tensor:
        head = self.tower.head
        tokens, attention = self.tower.post_layernorm(hidden), head.attention
        check_loaded(attention)
        weight, bias, count = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
        query = heads(third(head.probe, weight, bias, 0), count).expand(len(tokens), -1, -1, -1)
        return cls_row(query, heads(third(tokens, weight, bias, 1), count), attention.head_dim**-0.5)


class HfBlock(FeatureBlock):
    """A `CLIPEncoderLayer` or `SiglipEncoderLayer`."""

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.attention: Any = block.self_attn
        self.scale, self.dropout = self.attention.scale, self.attention.dropout
        super().__init__(block, hidden, prefix)

    def _norm(self, hidden: Tensor) -> Tensor:
        return self.block.layer_norm1(hidden)

    def _query(self, normed: Tensor) -> Tensor:
        return heads(self.attention.q_proj(normed), self.attention.num_heads)

    def _key(self) -> Tensor:
        return heads(self.attention.k_proj(self.normed), self.attention.num_heads)

    def _value(self) -> Tensor:
        return heads(self.attention.v_proj(self.normed), self.attention.num_heads)

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        hidden = residual + self.attention.out_proj(merged(mixed))
        return hidden + self.block.mlp(self.block.layer_norm2(hidden))
