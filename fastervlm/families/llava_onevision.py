"""LLaVA-OneVision (`LlavaOnevisionForConditionalGeneration`): pictures in crops, several pictures, and clips, by a SigLIP.

Beside other pictures a picture is not cut. The map of the crops of a large picture, and each frame of a clip, is resized behind
the projector, so that a token is mixed of several patches.

Dims: S crops or frames, N patches of each, T tokens of a map, D language model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded, Family
from fastervlm.families.clips import check_clips, encode_frames, questions_of
from fastervlm.families.encoding import INPUTS, check_tower, in_groups, scored
from fastervlm.families.llava_next.crops import CropLayout
from fastervlm.families.llava_next.encode import crops_of, cuts_of, encode_crops, newline_of
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.blends import Blend, remembered
from fastervlm.selection.choice import Choice
from fastervlm.selection.schedule import refuse_schedule


class LlavaOnevision(Family):
    """How a LLaVA-OneVision model encodes pictures and clips under pruning."""

    class_name = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"
    measured = False
    kinds = ("image", "video")
    inputs = (
        *(*INPUTS, "pixel_values_videos", "video_index"),
        *("batch_num_images", "vision_aspect_ratio", "image_sizes_videos"),
    )
    budgets = ("crop", "image", "frame", "clip")
    parts = "crops"
    one_graph = False

    def settings(self, options: Options) -> Anyres:
        """How crops are laid out, and whether those of a picture, or the frames of a clip, share their tokens."""
        super().settings(options)
        options.refuse_clips()
        if options.anyres != "native":
            raise UserError(f"anyres={options.anyres!r} is for LLaVA-NeXT; leave it out.")
        return Anyres("native", options.newline, "image" if options.budget in ("image", "clip") else "crop")

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_tower(model, model.model.vision_tower, pruning)
        refuse_schedule(pruning.encoder_keep)

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call, then one for each clip."""
        questions_of(call)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All pictures and clips of the call, by the kind of their placeholders."""
        about_pictures, about_clips = questions_of(call)
        encoded = {}
        if call.get("pixel_values") is not None:
            cuts = _cuts(model, pruning, call)
            patches = scored(model, pruning, call, crops_of(call["pixel_values"], cuts))
            encoded["image"] = encode_crops(model, pruning, patches, cuts, about_pictures)
        if call.get("pixel_values_videos") is not None:
            videos = check_clips(call["pixel_values_videos"])
            patches = remembered(scored(model, pruning, call, videos.flatten(0, 1)))
            blend = Blend.bilinear(patches.grid, (math.ceil(patches.grid[0] / 2), math.ceil(patches.grid[1] / 2)))

            def project(choice: Choice) -> Tensor:
                return _tokens_of_frames(model, blend, patches, choice)

            tokens, newline = blend.tokens(patches), newline_of(model.model)
            encoded["video"] = encode_frames(pruning, tokens, videos.shape[1], project, about_clips, newline)
        return encoded

    def outputs(self, features: list[Tensor], kind: str) -> Any:
        """Pictures as a list; clips as one tensor, see `in_groups`."""
        return features if kind == "image" else in_groups(features)

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor, padding on the left."""
        processor.tokenizer.padding_side = "left"
        return processor


def _tokens_of_frames(model: Any, blend: Blend, patches: ScoredPatches, choice: Choice) -> Tensor:
    """The kept tokens (R, D) of frames; all of them as the stock model computes them, and so with its rounding."""
    projector = model.model.multi_modal_projector
    if choice.everything:
        return model.model.apply_pooling(projector(patches.features())).flatten(0, 1)
    return blend.project(patches, choice, projector)


def _cuts(model: Any, pruning: Pruning, call: Mapping[str, Any]) -> list[CropLayout]:
    """How each picture of the call is cut; beside others of its prompt it is not."""
    ratio, own = call.get("vision_aspect_ratio"), model.config.vision_aspect_ratio
    if ratio is not None and ratio != own:
        raise UserError(f"vision_aspect_ratio={ratio!r} is not that of the model, {own!r}; set it in the config instead.")
    cuts = cuts_of(model, pruning.settings, call)
    numbers: Sequence[int] | Tensor | None = call.get("batch_num_images")
    if numbers is not None:
        alone = [int(number) == 1 for number in numbers for _ in range(int(number))]
        if len(alone) != len(cuts):
            raise UserError(
                f"batch_num_images counts {len(alone)} pictures where image_sizes has {len(cuts)}; pass both from one call of "
                "the processor."
            )
        cuts = [cut if own else CropLayout.single(cut.size, cut.crop, cut.side) for cut, own in zip(cuts, alone, strict=True)]
    for each in cuts:
        _refuse_resized(each, own)
    return cuts


def _refuse_resized(cut: CropLayout, ratio: str) -> None:
    """Refuse a picture of so many crops that their map is resized behind the projector."""
    if not cut.cut:
        return
    top, bottom, left, right = cut.window
    most = int(ratio.removeprefix("anyres_max_"))
    if math.sqrt((bottom - top) * (right - left) / (most * cut.side**2)) > 1.1:
        raise UserError(
            f"This picture of {cut.size[0]} x {cut.size[1]} pixels is cut into so many crops that the model resizes their map, "
            f"which fastervlm does not prune; make it smaller, so that it takes about {most} crops."
        )
