"""CLIP and SigLIP towers as vLLM makes them for LLaVA: cut off behind the feature layer, heads split over the ranks.

Only vLLM's own modules are called, so that quantised and tensor-parallel towers work. All ranks score and choose alike: what
depends on all heads is gathered from them.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from encoders.block import FeatureBlock, HalfBlock, heads, merged
from encoders.tower import TowerEncoder, check_pixels, check_size


class VllmClipEncoder(TowerEncoder):
    """A `CLIPVisionTransformer` of `vllm.model_executor.models.clip`.

    `select_layer` counts the layers of the whole tower, of which vLLM has loaded those that are needed.
    """

    @property
    def layers(self) -> int:
        """Those of the whole tower."""
        return self.tower.config.num_hidden_layers

    @property
    def prefix(self) -> int:
        """One, [CLS]."""
        return 1

    @property
    def scores(self) -> tuple[str, ...]:
        """By [CLS]."""
        return ("cls",)

    @property
    def own_attention(self) -> bool:
        """True: where all patches stay, vLLM's own block computes them."""
        return True

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that are loaded, in their order."""
        return self.tower.encoder.layers

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.tower.config.patch_size, self.tower.config.patch_size

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        config = self.tower.config
        size = check_pixels(pixel_values, config.num_channels)
        check_size(size, (config.image_size, config.image_size), "use the processor of the model")
        return config.image_size // config.patch_size, config.image_size // config.patch_size

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        return self.tower.pre_layrnorm(self.tower.embeddings(pixel_values)), None

    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> HalfBlock:
        return VllmClipBlock(self.blocks[block], hidden, self.prefix)


class VllmSiglipEncoder(VllmClipEncoder):
    """A `SiglipVisionTransformer` of `vllm.model_executor.models.siglip`, which vLLM loads without its pooling head."""

    @property
    def prefix(self) -> int:
        """None."""
        return 0

    @property
    def scores(self) -> tuple[str, ...]:
        """Those of every tower alone."""
        return ()

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        return self.tower.embeddings(pixel_values), None

    def _run(self, block: nn.Module, hidden: Tensor, extra: Any) -> Tensor:
        return block(hidden)[0]


class VllmClipBlock(FeatureBlock):
    """A `CLIPEncoderLayer` or `SiglipEncoderLayer` of vLLM: one projection gives what this rank's heads attend by."""

    dropout = 0.0

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.attention: Any = block.self_attn
        self.scale = self.attention.scale
        super().__init__(block, hidden, prefix)

    def cls_attention(self) -> Tensor:
        """(B, M, N) float32: of the heads of all ranks."""
        return self._all_heads(super().cls_attention())

    def received(self) -> Tensor:
        """(B, M, N) float32: of the heads of all ranks."""
        return self._all_heads(super().received())

    def keys(self) -> Tensor:
        """(B, M, N, d): of the heads of all ranks."""
        return self._all_heads(super().keys())

    def _all_heads(self, x: Tensor) -> Tensor:
        """x (B, M of this rank, ...) as (B, M, ...), the same on every rank."""
        if self.attention.tp_size == 1:
            return x
        return tensor_model_parallel_all_gather(x.contiguous(), dim=1)

    def _norm(self, hidden: Tensor) -> Tensor:
        normed = self.block.layer_norm1(hidden)
        self.whole, self.projected = normed, self._project(normed)
        return normed

    def _project(self, normed: Tensor) -> list[Tensor]:
        """Queries, keys and values, (B, M, T, d) each, of some rows (B, T, C)."""
        fused, _ = self.attention.qkv_proj(normed)
        return [heads(part, self.attention.num_heads_per_partition) for part in fused.chunk(3, dim=-1)]

    def _query(self, normed: Tensor) -> Tensor:
        # A quantised projection has no weight to take a third of: some rows go through all of it once more.
        return self.projected[0] if normed is self.whole else self._project(normed)[0]

    def _key(self) -> Tensor:
        return self.projected[1]

    def _value(self) -> Tensor:
        return self.projected[2]

    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        out, _ = self.attention.out_proj(merged(mixed))
        hidden = residual + out
        return hidden + self.block.mlp(self.block.layer_norm2(hidden))
