"""InternVL 3 and 3.5 in vLLM: K tokens of each tile of a picture."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails

from fastervlm.families.base import Encoded
from fastervlm.serving.options import NAMES, VISUAL_TOKENS, Served
from fastervlm.serving.vllm_models import intern_tower
from fastervlm.serving.vllm_models.embedding import PrunedModel
from fastervlm.serving.vllm_models.processing import PrunedInfo, PrunedProcessor

__all__ = ["PrunedInternVLForConditionalGeneration", "intern_tower"]  # which tells `encoders` of vLLM's tower


class PrunedInternVLProcessingInfo(PrunedInfo, InternS1ProcessingInfo):
    """K tokens of each tile."""

    @property
    def patches(self) -> int:  # type: ignore[override]
        """N of a tile."""
        return self.get_hf_config().image_seq_length

    def get_hf_processor(self, **told: Any) -> Any:
        """That of transformers, which knows nothing of our options."""
        return super().get_hf_processor(**{name: value for name, value in told.items() if name not in NAMES})

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Pictures alone: clips are not pruned here, and vLLM refuses them."""
        return {"image": None}

    def get_num_image_tokens(self, *, image_width: int, image_height: int, **told: Any) -> int:
        """The most that a picture of that size can take here."""
        return self.num_kept((image_height, image_width), self.served)

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """The tokens of all tiles together."""
        told = {"processor": self.get_hf_processor(), "mm_kwargs": {}}
        whole = super(PrunedInfo, self).get_num_image_tokens(image_height=size[0], image_width=size[1], **told)  # type: ignore[misc]
        return whole // self.patches * served.count(self.patches)


class PrunedInternVLMultiModalProcessor(PrunedProcessor, InternS1MultiModalProcessor):
    """vLLM's own, with K."""

    @property
    def placeholder(self) -> int:
        """The id of the token that stands for each of a picture's."""
        return self.info.get_hf_config().image_token_id

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        out = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "pixel_values" in out:
            out[VISUAL_TOKENS] = torch.tensor(self.counts(out, Served.of(hf_kwargs)))
        return out

    def counts(self, processed: BatchFeature, served: Served) -> list[int]:
        """K of the tiles of each picture."""
        return [served.count(self.info.patches)] * len(processed["image_num_patches"])

    def written(self, count: int) -> PromptUpdateDetails[list[int]]:
        """The tokens of a picture stand between two that say where it begins and ends."""
        processor = self.info.get_hf_processor()
        start, stop = processor.tokenizer.convert_tokens_to_ids([processor.start_image_token, processor.end_image_token])
        return PromptUpdateDetails.select_token_id([start, *super().written(count), stop], self.placeholder)


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLMultiModalProcessor, info=PrunedInternVLProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class PrunedInternVLForConditionalGeneration(PrunedModel, InternS1ForConditionalGeneration):
    """vLLM's own, with K tokens of each tile."""

    pictures = ("pixel_values", "image_num_patches")

    @property
    def view(self) -> Any:
        """The model as its family knows it from transformers."""
        return SimpleNamespace(config=self.config, model=self, dtype=self.vision_tower.embeddings.cls_token.dtype)

    def each(self, shown: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        """The tiles of a batch picture by picture."""
        tiles = shown["image_num_patches"].flatten()
        return {"pixel_values": shown["pixel_values"].split(tiles.tolist()), "image_num_patches": list(tiles)}

    def tower_rows(self, picture: Tensor) -> int:
        """How many tokens would come out of the tiles of a picture unpruned, by which vLLM sizes its batches."""
        return len(picture) * self.config.image_seq_length

    def call(self, shown: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """All tiles in one row; `given` knows whose they are, so that no prompt has to say it."""
        return {"pixel_values": torch.cat(shown["pixel_values"]), "image_index": range(len(shown["pixel_values"]))}

    def given(self, encoded: Encoded, shown: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        """The tokens (T_i, D) of all tiles of each picture."""
        tiles = iter(encoded.features)
        return [torch.cat([next(tiles) for _ in picture]) for picture in shown["pixel_values"]]
