"""LLaVA-OneVision (`LlavaOnevisionForConditionalGeneration`): pictures in crops, several pictures, and clips, by a SigLIP.

Beside other pictures a picture is not cut. The map of the crops of a large picture, and each frame of a clip, is resized behind
the projector, so that a token is mixed of several patches.

Dims: S crops or frames, N patches of each, T tokens of a map, D language model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded
from fastervlm.families.clips import check_clips, encode_frames, questions_of
from fastervlm.families.crops_and_clips import CropsAndClips
from fastervlm.families.encoding import INPUTS, in_groups, scored
from fastervlm.families.llava_next.crops import CropLayout
from fastervlm.families.llava_next.encode import crops_of, cuts_of, encode_crops, newline_of
from fastervlm.families.pruning import Pruning
from fastervlm.families.resized import encode_resized, resized_to
from fastervlm.selection.blends import Blend, remembered
from fastervlm.selection.choice import Choice


class LlavaOnevision(CropsAndClips):
    """How a LLaVA-OneVision model encodes pictures and clips under pruning."""

    class_name = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"
    tower_kind = "SigLIP"
    scores = ("received", "norm")
    usual_method = "coverage"
    rows = ("video",)
    inputs = (
        *(*INPUTS, "pixel_values_videos", "video_index"),
        *("batch_num_images", "vision_aspect_ratio", "image_sizes_videos"),
    )

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All pictures and clips of the call, by the kind of their placeholders."""
        about_pictures, about_clips = questions_of(call)
        encoded = {}
        if call.get("pixel_values") is not None:
            encoded["image"] = _encode_pictures(model, pruning, call, self.cuts(model, pruning, call), about_pictures)
        if call.get("pixel_values_videos") is not None:
            videos = check_clips(call["pixel_values_videos"])
            patches = remembered(scored(model, pruning, call, videos.flatten(0, 1)))
            blend = Blend.bilinear(patches.grid, (math.ceil(patches.grid[0] / 2), math.ceil(patches.grid[1] / 2)))

            def project(choice: Choice) -> Tensor:
                return _tokens_of_frames(model, blend, patches, choice)

            tokens, newline = blend.tokens(patches), newline_of(model.model)
            encoded["video"] = encode_frames(pruning, tokens, videos.shape[1], project, about_clips, newline, "whole")
        return encoded

    def cuts(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> list[CropLayout]:
        """How each picture of the call is cut; beside others of its prompt it is not."""
        ratio, own = call.get("vision_aspect_ratio"), model.config.vision_aspect_ratio
        if ratio is not None and ratio != own:
            raise UserError(f"vision_aspect_ratio={ratio!r} is not that of the model, {own!r}; set it in the config instead.")
        cuts = cuts_of(model, pruning.settings, call)
        numbers: Sequence[int] | Tensor | None = call.get("batch_num_images")
        if numbers is None:
            return cuts
        alone = [int(number) == 1 for number in numbers for _ in range(int(number))]
        if len(alone) != len(cuts):
            raise UserError(
                f"batch_num_images counts {len(alone)} pictures where image_sizes has {len(cuts)}; pass both from one call of "
                "the processor."
            )
        return [cut if own else CropLayout.single(cut.size, cut.crop, cut.side) for cut, own in zip(cuts, alone, strict=True)]

    def outputs(self, features: list[Tensor], kind: str) -> Any:
        """Pictures as a list; clips as one tensor, see `in_groups`."""
        return features if kind == "image" else in_groups(features)

    def num_visual_tokens(self, config: Any, kind: str = "image") -> int:
        """N, the patches of a crop, or the tokens that the map of a frame is resized to."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side**2 if kind == "image" else math.ceil(side / 2) ** 2

    def configs(self, tower: Mapping[str, Any], decoder: Mapping[str, Any]) -> tuple[Any, Any]:
        """Of a SigLIP without its pooling head, and of a Qwen2."""
        from transformers import Qwen2Config, SiglipVisionConfig

        return SiglipVisionConfig(**tower, vision_use_head=False), Qwen2Config(**decoder)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """A `LlavaOnevisionConfig` with the canvases of the published checkpoints."""
        from transformers import LlavaOnevisionConfig

        placeholders: dict[str, Any] = {"image_token_id": tokens["image"], "video_token_id": tokens["video"]}
        sides = [vision.image_size * count for count in range(1, 7)]
        return LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            **placeholders,
            image_grid_pinpoints=[[high, wide] for high in sides for wide in sides],
        )

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """A `LlavaOnevisionProcessor`."""
        from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

        side = config.vision_config.image_size
        size: dict[str, Any] = {"size": {"height": side, "width": side}}
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(**size, image_grid_pinpoints=config.image_grid_pinpoints),
            tokenizer=tokenizer,
            video_processor=LlavaOnevisionVideoProcessor(**size),
            num_image_tokens=self.num_visual_tokens(config),
            vision_feature_select_strategy="full",
        )

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor, padding on the left."""
        processor.tokenizer.padding_side = "left"
        return processor


def _encode_pictures(
    model: Any, pruning: Pruning, call: Mapping[str, Any], cuts: list[CropLayout], questions: Sequence[str] | None
) -> Encoded:
    """All pictures of the call, cut so: those whose map is resized one by one, the others together."""
    sizes = [resized_to(each, model.config.vision_aspect_ratio) for each in cuts]
    crops = crops_of(call["pixel_values"], cuts).split([each.crops for each in cuts])
    plain = [i for i, size in enumerate(sizes) if size is None]
    found: dict[int, Encoded] = {}
    for picture, size in enumerate(sizes):
        if size is not None:
            patches, about = scored(model, pruning, call, crops[picture]), None if questions is None else [questions[picture]]
            found[picture] = encode_resized(model, pruning, patches, cuts[picture], size, about)
    if plain:
        patches = scored(model, pruning, call, torch.cat([crops[i] for i in plain]))
        about = None if questions is None else [questions[i] for i in plain]
        together = encode_crops(model, pruning, patches, [cuts[i] for i in plain], about)
        found |= {picture: together.shown([place]) for place, picture in enumerate(plain)}
    order = [found[picture] for picture in range(len(cuts))]
    return Encoded(*([getattr(each, name)[0] for each in order] for name in ("features", "keep", "trace")))


def _tokens_of_frames(model: Any, blend: Blend, patches: ScoredPatches, choice: Choice) -> Tensor:
    """The kept tokens (R, D) of frames; all of them as the stock model computes them, and so with its rounding."""
    projector = model.model.multi_modal_projector
    if choice.everything:
        return model.model.apply_pooling(projector(patches.features())).flatten(0, 1)
    return blend.project(patches, choice, projector)
