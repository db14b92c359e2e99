"""Qwen2.5-VL in vLLM: K tokens of each picture, numbered where they stood in the whole picture (M-RoPE).

vLLM numbers a prompt before it sees a picture. It has models that prune write the places of what they kept behind their
embeddings, and asks the model for new numbers (`SupportsMultiModalPruning`, made for clips). Here all but the places inside the
pictures is right from the start, since the words behind a picture count on from its whole grid: a picture that lies in a cache
already needs nothing.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageEmbeddingItems
from vllm.platforms import current_platform

from fastervlm.families.base import Encoded
from fastervlm.families.qwen_vl import Qwen25VL
from fastervlm.serving.options import Served
from fastervlm.serving.vllm_models.embedding import PrunedModel
from fastervlm.serving.vllm_models.processing import PrunedInfo, PrunedProcessor
from fastervlm.serving.vllm_models.qwen_tower import VllmQwenEncoder

_CHANNELS = 4  # row and column, two digits each: vLLM takes as many off again
_BASE = 256  # of the digits; bfloat16 holds no larger whole numbers exactly


class VllmQwen25VL(Qwen25VL):
    """The family, over vLLM's tower."""

    encoder = VllmQwenEncoder


class PrunedQwen25VLProcessingInfo(PrunedInfo, Qwen2_5_VLProcessingInfo):
    """K tokens, or all of a picture that has fewer."""

    def get_num_image_tokens(self, **told: Any) -> int:  # type: ignore[override]
        """The most that a picture of that size can take here."""
        return self.served.count(super(PrunedInfo, self).get_num_image_tokens(**told))  # type: ignore[misc]

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Pictures alone: clips are not pruned here, and vLLM refuses them."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most that a picture can take."""
        return {"image": self.get_max_image_tokens()}

    def patches_of(self, size: tuple[int, int]) -> int:
        """N of a picture of that (height, width)."""
        told = {"image_processor": self.get_image_processor(), "mm_kwargs": {}}
        return super(PrunedInfo, self).get_num_image_tokens(image_height=size[0], image_width=size[1], **told)  # type: ignore[misc]

    def patches_shown(self, items: Any) -> list[int]:
        """N of each picture of a request."""
        images = items.get("image")
        if images is None or isinstance(images, ImageEmbeddingItems):
            return []
        sizes = [images.get_image_size(number) for number in range(len(images))]
        return [self.patches_of((size.height, size.width)) for size in sizes]

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """K, or all of a picture that has fewer."""
        return served.count(self.patches_of(size))


class PrunedQwen25VLMultiModalProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """vLLM's own, with K."""

    @property
    def placeholder(self) -> int:
        """The id of the token that stands for each of a picture's."""
        return self.info.get_hf_config().image_token_id

    def counts(self, processed: BatchFeature, served: Served) -> list[int]:
        """How many tokens are kept of each picture."""
        unit = self.info.get_hf_config().vision_config.spatial_merge_size ** 2
        return [served.count(int(grid.prod()) // unit) for grid in processed["image_grid_thw"]]


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen25VLMultiModalProcessor, info=PrunedQwen25VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VLForConditionalGeneration(PrunedModel, Qwen2_5_VLForConditionalGeneration):
    """vLLM's own, with K tokens of each picture."""

    pictures = ("pixel_values", "image_grid_thw")

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        # What runs the model asks for new numbers only where clips are pruned; this rate takes no token of any.
        vllm_config.model_config.multimodal_config.video_pruning_rate = 1e-9
        _tell_cpu_runner()
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def load_family(self) -> Qwen25VL:
        """The family, over vLLM's tower."""
        return VllmQwen25VL()

    def each(self, shown: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        """The patches of a batch picture by picture."""
        grids = shown["image_grid_thw"]
        return {"pixel_values": shown["pixel_values"].split(grids.prod(dim=-1).tolist()), "image_grid_thw": list(grids)}

    def tower_rows(self, picture: Tensor) -> int:
        """How many tokens would come out of a picture (S, ...) unpruned, by which vLLM sizes its batches."""
        return len(picture) // self.visual.spatial_merge_unit

    def call(self, shown: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """The patches of all in one sequence."""
        return {"pixel_values": torch.cat(shown["pixel_values"]), "image_grid_thw": torch.stack(shown["image_grid_thw"])}

    def given(self, encoded: Encoded, shown: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        """The tokens (T_i, D + 4), with the place of each in its picture behind it."""
        found = []
        for features, keep, trace in zip(encoded.features, encoded.keep, encoded.trace, strict=True):
            number = keep.nonzero()[:, 0]
            columns = trace.grid[1]
            digits = [part for at in (number // columns, number % columns) for part in (at // _BASE, at % _BASE)]
            found.append(torch.cat([features, torch.stack(digits, dim=-1).to(features)], dim=-1))
        return found

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """(3, T) numbers of a prompt, the tokens of a picture all at its corner as yet; and how far they run ahead."""
        positions, delta, behind = torch.arange(len(input_tokens)).repeat(3, 1), 0, 0
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            first, kept = feature.mm_position.offset, feature.mm_position.length
            _, rows, columns = feature.data["image_grid_thw"].data.tolist()
            side, behind = self.visual.spatial_merge_size, first + kept
            positions[:, first:behind] = first + delta
            delta += max(rows, columns) // side - kept
            positions[:, behind:] = torch.arange(behind, len(input_tokens)) + delta
        return positions, delta

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Put the tokens of pictures that are read now at their places.

        Args:
            input_ids: (T,) the prompt.
            multimodal_embeddings: (T_i, D + 4) each, what is read of each picture, in their order.
            mrope_positions: (3, T) as they are.
            num_computed_tokens: of the prompt, those that have been read.
        """
        positions, ids = mrope_positions.clone(), torch.as_tensor(input_ids, device=mrope_positions.device)
        length = len(ids)
        if multimodal_embeddings:
            shown = ids == self.config.image_token_id
            digits = torch.cat([each[:, -_CHANNELS:] for each in multimodal_embeddings]).long().T.to(positions.device)
            at = shown.nonzero()[:, 0]
            at = at[at >= num_computed_tokens][: digits.shape[1]]
            corner = self._corners(positions, shown)[at]
            local = torch.stack([torch.zeros_like(corner), digits[0] * _BASE + digits[1], digits[2] * _BASE + digits[3]])
            positions[:, at] = (corner + local).to(positions.dtype)
        return [each[:, :-_CHANNELS] for each in multimodal_embeddings], positions, int(positions.max()) + 1 - length

    def _corners(self, positions: Tensor, shown: Tensor) -> Tensor:
        """(T,) where the picture of each token begins: one behind the text in front of it."""
        numbers = torch.arange(len(shown), device=shown.device)
        before = torch.where(shown, -1, numbers).cummax(dim=0).values
        return torch.where(before < 0, 0, positions[0, before.clamp(min=0)] + 1)


def _tell_cpu_runner() -> None:
    """Have the runner for CPUs ask a model that prunes for new numbers, as that for GPUs does; vLLM 0.32 forgets it."""
    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def enabled(runner: Any) -> bool:
        model = getattr(runner, "model", None)
        told = runner.model_config.multimodal_config
        return told is not None and told.is_multimodal_pruning_enabled() and supports_multimodal_pruning(model)

    CPUModelRunner.is_multimodal_pruning_enabled = property(enabled, lambda *_: None)
