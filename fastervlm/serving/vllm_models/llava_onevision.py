"""LLaVA-OneVision in vLLM: K tokens of each crop of a picture, the same share of a map that is resized, and newline tokens.

Beside others a picture is not cut, as in transformers; vLLM's own class cuts all. So a picture alone and the same one beside
others are two to vLLM's caches.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from fastervlm.families.llava_next.crops import CropLayout, cut
from fastervlm.families.llava_onevision import LlavaOnevision
from fastervlm.families.pruning import Pruning
from fastervlm.families.resized import most_kept, num_kept
from fastervlm.serving.options import VISUAL_TOKENS, Served
from fastervlm.serving.vllm_models.embedding import TRANSFORMERS_5, PrunedModel
from fastervlm.serving.vllm_models.processing import BESIDE_OTHERS, PrunedInfo, PrunedProcessor


class VllmLlavaOnevision(LlavaOnevision):
    """The family, where pictures of several prompts come together: one that has an overview alone stood beside others."""

    def cuts(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> list[CropLayout]:
        """How each picture is cut, which its crops say."""
        cuts = [cut((int(height), int(width)), model.config, "native") for height, width in call["image_sizes"].tolist()]
        return [
            each if crops > 1 else CropLayout.single(each.size, each.crop, each.side)
            for each, crops in zip(cuts, call["crops"], strict=True)
        ]


class PrunedLlavaOnevisionProcessingInfo(PrunedInfo, LlavaOnevisionProcessingInfo):
    """K tokens of each crop, and newline tokens."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Pictures alone: clips are not pruned here, and vLLM refuses them."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most that a picture can take."""
        return {"image": most_kept(self.get_hf_config(), self.served.count(self.patches), self.served.newline)}

    def get_image_size_with_most_features(self) -> ImageSize:
        """That of most crops, by which vLLM finds out how much memory the tower takes."""
        height, width = max(self.get_hf_config().image_grid_pinpoints, key=lambda size: size[0] * size[1])
        return ImageSize(width=width, height=height)

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """The tokens of a picture that no other is beside."""
        config = self.get_hf_config()
        keep = served.count(self.patches)
        return num_kept(cut(size, config, "native"), config.vision_aspect_ratio, keep, served.newline)


class PrunedLlavaOnevisionMultiModalProcessor(PrunedProcessor, LlavaOnevisionMultiModalProcessor):
    """vLLM's own, with K, and with pictures beside others as transformers shows them."""

    def circumstances(self, items: Any) -> dict[str, Any]:
        """Whether a picture stands beside others."""
        return {BESIDE_OTHERS: True} if items.get_count("image", strict=False) > 1 else {}

    def num_kept(self, size: tuple[int, int], told: Mapping[str, Any]) -> int:
        """The tokens of a picture under a request's options."""
        served = Served.of(told)
        if BESIDE_OTHERS not in told:
            return self.info.num_kept(size, served)
        return served.count(self.info.patches) + (served.newline == "all")

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        out = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "pixel_values" in out:
            for name in ("pixel_values", "image_sizes"):
                out[name] = out[name][: mm_items.get_count("image")]
            out[VISUAL_TOKENS] = torch.tensor(self.counts(out, Served.of(hf_kwargs)))
        return out

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        told = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        images = told.hf_data.get("images")
        if not images or BESIDE_OTHERS not in hf_kwargs:
            return told
        # The others may lie in a cache: then a picture is shown beside itself, and the second one is left out again.
        beside = images if len(images) > 1 else [*images, *images]
        return told._replace(hf_data={**told.hf_data, "images": [beside], "text": self._get_hf_mm_text({"image": len(beside)})})


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaOnevisionMultiModalProcessor, info=PrunedLlavaOnevisionProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaOnevisionForConditionalGeneration(PrunedModel, LlavaOnevisionForConditionalGeneration):
    """vLLM's own, with K tokens of each crop."""

    pictures = ("pixel_values", "image_sizes")
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | TRANSFORMERS_5

    def load_family(self) -> LlavaOnevision:
        """The family, which is told of crops what a prompt says in transformers."""
        return VllmLlavaOnevision()

    def call(self, shown: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """All crops in one row, and how many each picture has."""
        pictures = shown["pixel_values"]
        crops = [len(each) for each in pictures]
        return {"pixel_values": torch.cat(pictures), "image_sizes": torch.stack(shown["image_sizes"]), "crops": crops}

    def pack_image_features(
        self, features: Sequence[Tensor], sizes: Sequence[Sequence[int]], *, image_newline: Tensor, vision_aspect_ratio: str
    ) -> tuple[list[Tensor], list[int]]:
        """The tokens (T, D) of pictures in crops (crops, N, D) and how many, by what vLLM's own class has in its place."""
        told: dict[str, Any] = {"image_newline": image_newline, "vision_aspect_ratio": vision_aspect_ratio}
        packed = [
            self._merge_image_patch_embeddings(torch.tensor(size), each, strategy="spatial_unpad", **told)
            for each, size in zip(features, sizes, strict=True)
        ]
        return packed, [len(each) for each in packed]
