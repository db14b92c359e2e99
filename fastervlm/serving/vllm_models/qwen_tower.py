"""The tower of Qwen2.5-VL as vLLM makes it: fused projections, their heads split over the ranks of a server.

Dims: S patches of all pictures of a call, C tower width, d head width.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from encoders.packed import PackedEncoder, PackedWalk
from encoders.packed_block import PackedBlock


class VllmQwenEncoder(PackedEncoder):
    """A `Qwen2_5_VisionTransformer` of `vllm.model_executor.models.qwen2_5_vl`."""

    known = ("vllm.Qwen2_5_VisionTransformer",)

    def _walk(self, pixel_values: Tensor, grid: Tensor) -> PackedWalk:
        return VllmQwenWalk(self.tower, pixel_values, grid)


class VllmQwenWalk(PackedWalk):
    """A call's way through it, with what vLLM itself computes for its blocks."""

    def __init__(self, tower: Any, pixels: Tensor, grid: Tensor) -> None:
        self.tower, self.pixels, self.grid = tower, pixels, grid
        told = tower.prepare_encoder_metadata(grid.tolist())
        self.told, self.ends = told, self._ends()
        hidden = tower.patch_embed(tower.input_norm(pixels.to(tower.dtype), tower.dtype))
        self.hidden = self._by_window(hidden)
        self.positions = self._by_window(torch.cat([self._places(*each) for each in grid.tolist()]).to(hidden.device))
        self.turns = {
            "cosines": torch.cat([told["rotary_pos_emb_cos"]] * 2, dim=-1),
            "sines": torch.cat([told["rotary_pos_emb_sin"]] * 2, dim=-1),
        }
        self.windowed_settings: Any = {}  # `run` passes them on

    def run(self, number: int, hidden: Tensor) -> Tensor:
        """Output (S, C) of a whole block, as vLLM's tower calls it."""
        kind = ("cu_window_seqlens", "window") if self.windowed(number) else ("cu_seqlens", "full")
        return self.tower.blocks[number](
            hidden[:, None],
            cu_seqlens=self.told[kind[0]],
            rotary_pos_emb_cos=self.told["rotary_pos_emb_cos"],
            rotary_pos_emb_sin=self.told["rotary_pos_emb_sin"],
            max_seqlen=self.told[f"max_seqlen_{kind[1]}"],
            sequence_lengths=self.told[f"sequence_lengths_{kind[1]}"],
        )[:, 0]

    def stopped(self, number: int, hidden: Tensor) -> PackedBlock:
        """A block that has its input and has computed no more than it is asked for."""
        return VllmQwenBlock(self.tower.blocks[number], hidden, **self.turns)

    def _ends(self) -> Tensor:
        """Where each window ends; what the blocks are given may be in another unit, by what computes attention here."""
        ends, first = [], 0
        for frames, rows, columns in self.grid.tolist():
            own = self.tower.get_rope_by_thw(frames, rows, columns)[3]
            ends.append(own.long() + first)
            first += frames * rows * columns
        return torch.cat(ends)

    def _by_window(self, x: Tensor) -> Tensor:
        """Rows (S, ...) in the order of the pixels, window by window; the patches of a token stay together."""
        return x.unflatten(0, (-1, self.tower.spatial_merge_unit))[self.told["window_index"]].flatten(0, 1)

    def _places(self, frames: int, rows: int, columns: int) -> Tensor:
        """(frames * rows * columns, 2) row and column of each patch, those of a token together."""
        side = self.tower.spatial_merge_size
        both = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
        tokens = both.view(rows // side, side, columns // side, side, 2).transpose(1, 2).reshape(-1, 2)
        return tokens.repeat(frames, 1)


class VllmQwenBlock(PackedBlock):
    """A `Qwen2_5_VisionBlock` of vLLM; scores and keys are of the heads of all ranks."""

    def __init__(self, block: nn.Module, hidden: Tensor, cosines: Tensor, sines: Tensor) -> None:
        super().__init__(block, hidden, cosines, sines)
        self.own = self.attention.num_attention_heads_per_partition

    def received(self, places: Tensor) -> Tensor:
        """(B, M, N) float32: of the heads of all ranks."""
        return self._all_heads(super().received(places))

    def keys(self, places: Tensor) -> Tensor:
        """(B, M, N, d): of the heads of all ranks."""
        return self._all_heads(super().keys(places))

    def _all_heads(self, x: Tensor) -> Tensor:
        return x if self.attention.tp_size == 1 else tensor_model_parallel_all_gather(x.contiguous(), dim=1)

    @property
    def _scale(self) -> float:
        return self.attention.hidden_size_per_attention_head**-0.5

    def _out(self, mixed: Tensor) -> Tensor:
        return self.attention.proj(mixed)[0]

    def _part(self, normed: Tensor, part: int) -> Tensor:
        # A quantised projection has no weight to take a third of.
        return self.attention.qkv(normed)[0].chunk(3, dim=-1)[part].unflatten(-1, (self.own, -1))
