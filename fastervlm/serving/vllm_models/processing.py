"""What all pruned models have in common in vLLM's processing of a request: how many tokens, and who knows it."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems
from vllm.multimodal.processing import InputProcessingContext, PromptReplacement

from fastervlm.serving.options import NAMES, VISUAL_TOKENS, Served

# Among the options of a request, by which vLLM's caches tell its pictures from others: it shows several.
BESIDE_OTHERS = "beside_others"
_OURS = (*NAMES, BESIDE_OTHERS)


class PrunedContext(InputProcessingContext):
    """A context that keeps our options from the processor of transformers, which knows nothing of them."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **scopes: Any) -> dict[str, Any]:
        """The options of server and request, without ours."""
        merged = getattr(
            InputProcessingContext.get_merged_mm_kwargs, "__wrapped__", InputProcessingContext.get_merged_mm_kwargs
        )
        return {name: value for name, value in merged(self, kwargs, **scopes).items() if name not in _OURS}


class PrunedInfo:
    """Mixed into a processing info of vLLM: K of the server, and what it makes of a picture."""

    ctx: Any
    get_hf_config: Any
    get_vision_encoder_info: Any

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(PrunedContext(**{each.name: getattr(ctx, each.name) for each in fields(ctx)}))  # type: ignore[call-arg]

    @cached_property
    def served(self) -> Served:
        """How the server was told to prune."""
        return Served.of(self.ctx.get_mm_config().mm_processor_kwargs or {})

    @cached_property
    def patches(self) -> int:
        """N of a picture or crop."""
        return self.get_vision_encoder_info().get_patch_grid_length() ** 2

    def patches_shown(self, items: Any) -> list[int]:
        """N of each picture of a request, or what all have."""
        return [self.patches]

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """The most that a picture of that size can take here."""
        return self.num_kept((image_height, image_width), self.served)

    def num_kept(self, size: tuple[int, int], served: Served) -> int:
        """How many tokens stand for a picture of that (height, width)."""
        raise NotImplementedError


class PrunedProcessor:
    """Mixed into a multi-modal processor of vLLM: K of the request travels with each of its pictures."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As vLLM's own, with the request's options checked and written out.

        So what is not said and what is said as it would be anyway have one hash, and no hash is another's with another K.

        Raises:
            UserError: the request asks for what this server does not give; vLLM answers it with status 400.
        """
        told, items = dict(inputs.hf_processor_mm_kwargs), inputs.mm_data_items
        served = self.info.served.asked(told, self.info.patches_shown(items))
        told |= {**served.told, **self.circumstances(items)}
        return super().apply(replace(inputs, hf_processor_mm_kwargs=told), timing_ctx)  # type: ignore[misc]

    def circumstances(self, items: Any) -> dict[str, Any]:
        """What else of a request decides which tokens stand for its pictures, to be put among its options."""
        return {}

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        out = super()._call_hf_processor(hf_data, hf_kwargs)  # type: ignore[misc]
        out[VISUAL_TOKENS] = torch.tensor(self.counts(out, Served.of(hf_kwargs)))
        return out

    def counts(self, processed: BatchFeature, served: Served) -> list[int]:
        """K of each picture, or of each of its crops."""
        return [served.count(self.info.patches)] * len(processed["pixel_values"])

    @property
    def placeholder(self) -> int:
        """The id of the token that stands for each of a picture's."""
        return self.info.get_hf_config().image_token_index

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> dict[str, Any]:
        known = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**known, VISUAL_TOKENS: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        def replacement(item: int) -> Any:
            images = mm_items["image"]
            if isinstance(images, ImageEmbeddingItems):
                return self.written(images.get_feature_size(item))
            size = images.get_image_size(item)
            return self.written(self.num_kept((size.height, size.width), hf_processor_mm_kwargs))

        return [PromptReplacement(modality="image", target=[self.placeholder], replacement=replacement)]

    def num_kept(self, size: tuple[int, int], told: Mapping[str, Any]) -> int:
        """How many tokens stand for a picture of that (height, width) under a request's options."""
        return self.info.num_kept(size, Served.of(told))

    def written(self, count: int) -> Any:
        """What stands in a prompt for a picture of that many tokens."""
        return [self.placeholder] * count
