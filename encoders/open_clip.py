"""Visual towers of open_clip: its own `VisionTransformer`, with either of its two attention implementations.

Nothing on such a tower tells which activation its weights were trained with. OpenAI's, MetaCLIP's and DFN's weights want
QuickGELU: create "ViT-L-14-336-quickgelu", not "ViT-L-14-336", or pass `force_quick_gelu=True`; with plain GELU all features
come out wrong, though nothing fails. open_clip itself warns where weights are loaded by a tag it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from encoders.block import FeatureBlock, heads, kind, merged, third
from encoders.errors import UserError, UserTypeError
from encoders.tower import TowerEncoder, check_loaded, check_pixels, check_size

_BLOCKS = ("open_clip.ResidualAttentionBlock", "open_clip.CustomResidualAttentionBlock")
_ATTENTIONS = ("torch.MultiheadAttention", "open_clip.Attention")


class OpenClipEncoder(TowerEncoder):
    """A `VisionTransformer` of open_clip, scored by [CLS]."""

    def __init__(self, tower: nn.Module, *settings: Any) -> None:
        super().__init__(tower, *settings)
        for block in self.blocks:
            _check_block(block)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The tower's blocks, in their order."""
        return self.tower.transformer.resblocks

    @property
    def prefix(self) -> int:
        """One, [CLS]."""
        return 1

    @property
    def thins(self) -> bool:
        """Always."""
        return True

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.tower.patch_size

    @property
    def scores(self) -> tuple[str, ...]:
        """What this tower can score its patches by."""
        return ("cls",)

    @property
    def checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return self.tower.transformer.grad_checkpointing

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        size = check_pixels(pixel_values, self.tower.conv1.in_channels)
        advice = f"create the model with force_image_size={size}, as open_clip stretches positions only then"
        check_size(size, self.tower.image_size, advice)
        return self.tower.grid_size

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, None]:
        check_loaded(self.tower)
        return self.tower._embeds(pixel_values.to(self.tower.conv1.weight.dtype)), None

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> FeatureBlock:
        check_loaded(self.blocks[block].attn)  # type: ignore[arg-type]
        return OpenClipBlock(self.blocks[block], hidden, self.prefix)


class OpenClipBlock(FeatureBlock):
    """A `ResidualAttentionBlock` (`nn.MultiheadAttention`) or `CustomResidualAttentionBlock` (open_clip's `Attention`)."""

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.attention: Any = block.attn
        self.custom = not isinstance(self.attention, nn.MultiheadAttention)
        self.scale = self.attention.head_dim**-0.5
        self.dropout = self.attention.attn_drop.p if self.custom else self.attention.dropout
        super().__init__(block, hidden, prefix)

    def _norm(self, hidden: Tensor) -> Tensor:
        return self.block.ln_1(hidden)

    def _part(self, normed: Tensor, part: int) -> Tensor:
        attention = self.attention
        return heads(third(normed, attention.in_proj_weight, attention.in_proj_bias, part), attention.num_heads)

    def _query(self, normed: Tensor) -> Tensor:
        query = self._part(normed, 0)
        return self.attention.ln_q(query) if self.custom else query

    def _key(self) -> Tensor:
        key = self._part(self.normed, 1)
        return self.attention.ln_k(key) if self.custom else key

    def _value(self) -> Tensor:
        return self._part(self.normed, 2)

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        block = self.block
        hidden = residual + block.ls_1(self._out(mixed))
        return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))

    def _out(self, mixed: Tensor) -> Tensor:
        """Output (B, K, C) of the attention module, given mixed values (B, M, K, d)."""
        attention = self.attention
        if not self.custom:
            return attention.out_proj(merged(mixed))
        if attention.head_scale is not None:
            mixed = mixed * attention.head_scale
        return self.block.ln_attn(attention.out_drop(attention.out_proj(attention.ln_inner(merged(mixed)))))


def _check_block(block: Any) -> None:
    """Refuse a block whose second half would not be computed as the block itself does."""
    if kind(type(block)) not in _BLOCKS or kind(type(block.attn)) not in _ATTENTIONS:
        raise UserTypeError(
            f"Blocks of class {kind(type(block))} with attention of class {kind(type(block.attn))} cannot be stopped half-way; "
            f"{', '.join(_BLOCKS)} with {', '.join(_ATTENTIONS)} can."
        )
    if getattr(block.attn, "logit_scale", None) is not None:
        raise UserError("Scaled cosine attention is not supported; choose a tower without scaled_cosine_attn.")
