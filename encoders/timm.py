"""Vision transformers of timm: `VisionTransformer` (CLIP, SigLIP, DINOv2, DeiT) and `Eva` (EVA-CLIP, PE, DINOv3)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from encoders.base import cls_row
from encoders.block import FeatureBlock, heads
from encoders.errors import UserError, UserNote
from encoders.timm_block import TimmBlock, check_block
from encoders.tower import TowerEncoder, check_loaded, check_pixels, check_size


class TimmEncoder(TowerEncoder):
    """A `VisionTransformer` or `Eva` of timm, scored by [CLS] or by the latent query of its attention pooling."""

    def __init__(self, tower: nn.Module, *settings: Any) -> None:
        super().__init__(tower, *settings)
        for block in self.blocks:
            check_block(block)
        _warn_of_activation(self.tower)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The tower's blocks, in their order."""
        return self.tower.blocks

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches: [CLS], then registers or distillation."""
        return self.tower.num_prefix_tokens

    @property
    def thins(self) -> bool:
        """Where there is a [CLS] token, and no rotary table that goes along with the patches."""
        return self.tower.cls_token is not None and getattr(self.tower, "rope", None) is None

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.tower.patch_embed.feat_ratio(as_scalar=False)

    @property
    def scores(self) -> tuple[str, ...]:
        """What this tower can score its patches by."""
        pool = getattr(self.tower, "attn_pool", None)
        probe = type(pool).__name__ == "AttentionPoolLatent" and pool.latent_len == 1  # type: ignore[union-attr]
        return ("cls",) * (self.tower.cls_token is not None) + ("pool",) * probe

    @property
    def checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return self.tower.grad_checkpointing

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        tower, embed = self.tower, self.tower.patch_embed
        height, width = size = check_pixels(pixel_values, tower.in_chans)
        rows, columns = self.patch_size
        if not tower.dynamic_img_size:
            advice = f"make the tower with img_size={size} or dynamic_img_size=True, as timm stretches positions only then"
            check_size(size, embed.img_size, advice)
        elif not embed.dynamic_img_pad and (height % rows or width % columns):
            raise UserError(
                f"Pictures of {height} x {width} pixels are not made of whole patches of {rows} x {columns}; resize them, or "
                "make the tower with dynamic_img_pad=True."
            )
        return embed.dynamic_feat_size((height, width))

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Tensor | None]:
        tower = self.tower
        check_loaded(tower)
        dtype = next(tower.patch_embed.parameters()).dtype
        hidden = tower._pos_embed(tower.patch_embed(pixel_values.to(dtype)))
        if isinstance(hidden, tuple):
            return tower.norm_pre(hidden[0]), hidden[1]
        return tower.norm_pre(tower.patch_drop(hidden)), None

    def _extra(self, extra: Tensor | None, block: int) -> Tensor | None:
        return extra[block] if extra is not None and self.tower.rope_mixed else extra

    def _feature_block(self, block: int, hidden: Tensor, extra: Tensor | None) -> FeatureBlock:
        return TimmBlock(self.blocks[block], hidden, self.prefix, self._extra(extra, block))

    def _probe_attention(self, hidden: Tensor) -> Tensor:
        tower, pool = self.tower, self.tower.attn_pool
        # Eva pools over its prefix too.
        seen = self.prefix if getattr(tower, "pool_include_prefix", True) else 0
        check_loaded(pool)
        tokens = tower.norm(hidden)[:, self.prefix - seen :]
        if pool.pos_embed is not None:
            tokens = tokens + pool.pos_embed.unsqueeze(0).to(tokens.dtype)
        query = heads(pool.q(pool.latent), pool.num_heads).expand(len(tokens), -1, -1, -1)
        key = heads(pool.kv(tokens).chunk(2, dim=-1)[0], pool.num_heads)
        return cls_row(pool.q_norm(query), pool.k_norm(key), pool.scale)[..., seen:]


def _warn_of_activation(tower: Any) -> None:
    """Warn where timm's own note says that the weights were trained with QuickGELU and the tower computes GELU."""
    config = getattr(tower, "pretrained_cfg", None) or {}
    act = type(getattr(getattr(tower.blocks[0], "mlp", None), "act", None)).__name__
    if act.startswith("GELU") and any("QuickGELU" in note for note in config.get("notes") or ()):
        name = str(config.get("architecture"))
        warnings.warn(
            f"{name} computes GELU, but its weights {config.get('tag')!r} were trained with QuickGELU and give wrong features "
            f"here; create {name.replace('_clip_', '_clip_quickgelu_')} instead.",
            UserNote,
            stacklevel=4,
        )
