"""LLaVA-NeXT in vLLM: K tokens of each crop, and all newline tokens or none."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastervlm.families.llava_next.crops import cut
from fastervlm.serving.options import Served
from fastervlm.serving.vllm_models.embedding import TRANSFORMERS_5, PrunedModel
from fastervlm.serving.vllm_models.processing import PrunedInfo, PrunedProcessor


class PrunedLlavaNextProcessingInfo(PrunedInfo, LlavaNextProcessingInfo):
    """K tokens of each crop, fewer where un-padding leaves a crop fewer patches, and newline tokens."""

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """The tokens of all crops together."""
        return cut(size, self.get_hf_config(), "native").count(served.count(self.patches), served.newline)


class PrunedLlavaNextMultiModalProcessor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """vLLM's own, with K."""


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaNextMultiModalProcessor, info=PrunedLlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNextForConditionalGeneration(PrunedModel, LlavaNextForConditionalGeneration):
    """vLLM's own, with K tokens of each crop."""

    pictures = ("pixel_values", "image_sizes")
    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | TRANSFORMERS_5

    def call(self, shown: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """All crops in one row; what fills up a batch of pictures of unequal shapes is left out."""
        sizes = torch.stack(shown["image_sizes"])
        layouts = [cut((int(height), int(width)), self.config, "native") for height, width in sizes.tolist()]
        crops = [picture[: each.crops] for picture, each in zip(shown["pixel_values"], layouts, strict=True)]
        return {"pixel_values": torch.cat(crops), "image_sizes": sizes}
