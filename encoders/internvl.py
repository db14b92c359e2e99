"""InternVL's towers as transformers has them (InternViT), bare or inside an InternVL.

Only submodules and the scales of the residuals are read, never the weights of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from encoders.block import FeatureBlock, heads, merged
from encoders.errors import UserError
from encoders.tower import TowerEncoder, check_loaded, check_pixels, check_size


class InternVLEncoder(TowerEncoder):
    """An `InternVLVisionModel`, scored by [CLS]; with either norm, with or without a norm of queries and keys."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The tower's blocks, in their order."""
        return self.tower.encoder.layer

    @property
    def prefix(self) -> int:
        """One, [CLS]."""
        return 1

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        rows, columns = self.tower.config.patch_size
        return rows, columns

    @property
    def scores(self) -> tuple[str, ...]:
        """What this tower can score its patches by."""
        return ("cls",)

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        config, (rows, columns) = self.tower.config, self.patch_size
        height, width = check_pixels(pixel_values, config.num_channels)
        if not interpolate:
            check_size((height, width), tuple(config.image_size), "pass interpolate_pos_encoding=True")
        if height < rows or width < columns:
            raise UserError(f"Pictures of {height} x {width} pixels are smaller than one patch of {rows} x {columns}.")
        return height // rows, width // columns

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        return self.tower.embeddings(pixel_values), None

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> FeatureBlock:
        check_loaded(self.blocks[block])
        return InternVLBlock(self.blocks[block], hidden, self.prefix)


class InternVLBlock(FeatureBlock):
    """An `InternVLVisionLayer`."""

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.attention: Any = block.attention
        self.scale, self.dropout = self.attention.scale, self.attention.attention_dropout
        super().__init__(block, hidden, prefix)

    def _norm(self, hidden: Tensor) -> Tensor:
        return self.block.layernorm_before(hidden)

    def _query(self, normed: Tensor) -> Tensor:
        return heads(self.attention.q_norm(self.attention.q_proj(normed)), self.attention.num_heads)

    def _key(self) -> Tensor:
        return heads(self.attention.k_norm(self.attention.k_proj(self.normed)), self.attention.num_heads)

    def _value(self) -> Tensor:
        return heads(self.attention.v_proj(self.normed), self.attention.num_heads)

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        block, attention = self.block, self.attention
        hidden = block.lambda_1 * attention.projection_dropout(attention.projection_layer(merged(mixed))) + residual
        return block.lambda_2 * block.dropout(block.mlp(block.layernorm_after(hidden))) + hidden
