"""LLaVA-1.5 in vLLM: K tokens of each picture."""

# pyright: reportMissingImports=false
from __future__ import annotations

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fastervlm.serving.options import Served
from fastervlm.serving.vllm_models.embedding import TRANSFORMERS_5, PrunedModel
from fastervlm.serving.vllm_models.processing import PrunedInfo, PrunedProcessor


class PrunedLlavaProcessingInfo(PrunedInfo, LlavaProcessingInfo):
    """K tokens, whatever the size."""

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """K."""
        return served.count(self.patches)


class PrunedLlavaMultiModalProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """vLLM's own, with K."""


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaMultiModalProcessor, info=PrunedLlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaForConditionalGeneration(PrunedModel, LlavaForConditionalGeneration):
    """vLLM's own, with K tokens of each picture."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | TRANSFORMERS_5
