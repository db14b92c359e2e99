"""The tower of InternVL (InternViT) as vLLM makes it: every rank of a server holds all heads, only the MLPs are split."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from encoders.block import FeatureBlock, heads, merged
from encoders.internvl import InternVLEncoder
from encoders.registry import add_adapter


class VllmInternVLEncoder(InternVLEncoder):
    """An `InternS1VisionModel` of `vllm.model_executor.models.interns1_vit`."""

    @property
    def own_attention(self) -> bool:
        """True: where all patches stay, vLLM's own block computes them."""
        return True

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        return self.tower.embeddings(pixel_values)[0], None

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> FeatureBlock:
        return VllmInternVLBlock(self.blocks[block], hidden, self.prefix)


class VllmInternVLBlock(FeatureBlock):
    """An `InternS1VisionLayer` of vLLM; not all towers norm their queries and keys."""

    dropout = 0.0

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.attention: Any = block.attention
        self.scale = self.attention.scale
        super().__init__(block, hidden, prefix)

    def _norm(self, hidden: Tensor) -> Tensor:
        return self.block.layernorm_before(hidden)

    def _query(self, normed: Tensor) -> Tensor:
        return self._in_heads(self.attention.q_proj(normed), "q_norm")

    def _key(self) -> Tensor:
        return self._in_heads(self.attention.k_proj(self.normed), "k_norm")

    def _value(self) -> Tensor:
        return self._in_heads(self.attention.v_proj(self.normed))

    def _in_heads(self, x: Tensor, norm: str | None = None) -> Tensor:
        """x (B, T, C) normed where the tower does that, as (B, M, T, d)."""
        if norm is not None and self.attention.qk_normalization:
            normed: Callable[[Tensor], Tensor] = getattr(self.attention, norm)
            x = normed(x)
        return heads(x, self.attention.num_heads)

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        hidden = residual + self.attention.projection_layer(merged(mixed)) * self.block.lambda_1
        return hidden + self.block.mlp(self.block.layernorm_after(hidden)) * self.block.lambda_2


add_adapter("vllm.InternS1VisionModel", VllmInternVLEncoder)
