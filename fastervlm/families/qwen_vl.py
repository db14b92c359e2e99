"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and clips in their own shapes, numbered along time, height and width (M-RoPE).

What stays keeps its places along all three axes, whatever `positions` says; the words behind a picture count on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from encoders import UserError
from encoders.packed import PackedEncoder, check_grid
from fastervlm.families.base import Encoded, Family
from fastervlm.families.packed import encode_packed, merged
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.choice import check_questions
from fastervlm.selection.schedule import refuse_schedule

# By the kind of a placeholder, the arguments that bring the pixels, and the frames, rows and columns of each.
_SHOWN = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # of a picture, the least and the most, as published
_PLACED = ("mm_token_type_ids", "second_per_grid_ts")


class QwenVL(Family):
    """What the three have in common.

    Attributes:
        deep: features of some more blocks of the tower are added inside the language model.
        encoder: what reads the tower.
    """

    tower_kind = "of its own"
    scores = ("received", "norm")
    usual_method = "coverage"
    kinds = ("image", "video")
    shapes = ("native", "pad")
    rows = ()
    inputs = (*(name for names in _SHOWN.values() for name in names), *_PLACED, "image_index", "video_index", "questions")
    budgets = ("crop", "image", "frame", "clip")
    one_graph = False
    shrinks = "processor"
    deep: ClassVar[bool] = False
    encoder: ClassVar[type[PackedEncoder]] = PackedEncoder

    def settings(self, options: Options) -> bool:
        """Whether the frames of a clip share their tokens."""
        super().settings(options)
        options.refuse_clips()
        if options.anyres != "native" or options.newline != "kept":
            raise UserError("anyres and newline are for LLaVA-NeXT's pictures in crops; leave them out.")
        return options.budget == "clip"

    def tower(self, model: Any) -> Any:
        """The vision tower."""
        return model.model.visual

    def has_cls(self, model: Any) -> bool:
        """None of them has a [CLS] token."""
        return False

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        self.encoder(model.model.visual, **pruning.tower)
        refuse_schedule(pruning.encoder_keep)

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call, then one for each clip."""
        _questions(call)

    def projector(self, model: Any) -> Callable[[Tensor], Tensor]:
        """The merger, given the patches of each token side by side."""
        return partial(merged, model.model.visual.merger, model.model.visual.spatial_merge_size**2)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All pictures and clips of the call, by the kind of their placeholders."""
        questions, encoded = _questions(call), {}
        states = tuple(model.model.visual.deepstack_visual_indexes) if self.deep else ()
        for kind, (name, grid) in _SHOWN.items():
            if call.get(name) is not None:
                shown: dict[str, Any] = {"clips": kind == "video", "states": states, "encoder": self.encoder}
                encoded[kind] = encode_packed(model, pruning, call[name], call.get(grid), questions[kind], **shown)  # type: ignore[arg-type]
        return encoded

    def axes(self, model: Any, call: Mapping[str, Any], mask: Tensor | None) -> Tensor:
        """(3, R, T) places of the unpruned prompt along time, height and width, as the stock model numbers it."""
        if call.get("mm_token_type_ids") is None:
            raise UserError(
                f"A {self.class_name} needs mm_token_type_ids to number what it is shown; pass all that the processor returns."
            )
        if call.get("position_ids") is not None:
            raise UserError(f"Under fastervlm.prune a {self.class_name} numbers its prompts itself; leave position_ids out.")
        more = {name: call[name] for name in _PLACED if call.get(name) is not None}
        for kind, (name, grid) in _SHOWN.items():
            if call.get(name) is not None:
                check_grid(call.get(grid))
                index = call.get(f"{kind}_index")
                more[grid] = call[grid] if index is None else call[grid][torch.as_tensor(index)]
        try:
            return model.model.get_rope_index(call["input_ids"], attention_mask=mask, **more)[0]
        except (StopIteration, IndexError, RuntimeError, TypeError) as error:
            raise UserError(
                "The placeholders that mm_token_type_ids marks in the prompts are not those of the pictures and clips; make "
                "all inputs in one call of the processor."
            ) from error

    def outputs(self, features: list[Tensor], kind: str) -> Any:
        """A list, of what stands for the token alone."""
        return features

    def num_visual_tokens(self, config: Any, kind: str = "image") -> None:
        """Pictures have as many as their shape asks for."""
        return

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor, padding on the left."""
        processor.tokenizer.padding_side = "left"
        return processor


class Qwen2VL(QwenVL):
    """Qwen2-VL."""

    class_name = "Qwen2VLForConditionalGeneration"
    model_type = "qwen2_vl"


class Qwen25VL(QwenVL):
    """Qwen2.5-VL, whose tower sees windows in most blocks."""

    class_name = "Qwen2_5_VLForConditionalGeneration"
    model_type = "qwen2_5_vl"

    def configs(self, tower: Mapping[str, Any], decoder: Mapping[str, Any]) -> tuple[Any, Any]:
        """Arguments, of which its own config makes those of its parts; the head's width is parted as published."""
        half = decoder["hidden_size"] // decoder["num_attention_heads"] // 2
        along = 3 * half // 8
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * along, along, along]}
        return dict(tower), {**decoder, "rope_parameters": rope}

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """A `Qwen2_5_VLConfig`."""
        from transformers import Qwen2_5_VLConfig

        placeholders: dict[str, Any] = {"image_token_id": tokens["image"], "video_token_id": tokens["video"]}
        return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **placeholders)

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """A `Qwen2_5_VLProcessor`."""
        from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        vision = config.vision_config
        grid: dict[str, Any] = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        grid["temporal_patch_size"] = vision.temporal_patch_size
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(**grid, size=_PIXELS),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(**grid),
        )

    def grid(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of a picture, as its processor resizes it."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        vision = config.vision_config
        unit = vision.patch_size * vision.spatial_merge_size
        high, wide = smart_resize(height, width, unit, _PIXELS["shortest_edge"], _PIXELS["longest_edge"])
        return high // vision.patch_size, wide // vision.patch_size


class Qwen3VL(QwenVL):
    """Qwen3-VL, which adds features of other blocks of its tower inside the language model (deepstack)."""

    class_name = "Qwen3VLForConditionalGeneration"
    model_type = "qwen3_vl"
    deep = True

    def encoder_output(self, model: Any, features: list[Tensor], kind: str) -> Any:
        """Features (T_i, D * (1 + blocks)) parted: those of the tokens, and those of each block."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        count = 1 + len(model.model.visual.deepstack_visual_indexes)
        tokens, *deep = zip(*(of.chunk(count, dim=-1) for of in features), strict=True)
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=list(tokens),  # type: ignore[arg-type]
            deepstack_features=[list(each) for each in deep],  # type: ignore[arg-type]
        )


def _questions(call: Mapping[str, Any]) -> dict[str, Sequence[str] | None]:
    """What is asked about what is shown of each kind; None where nothing is said."""
    questions = call.get("questions")
    if questions is None:
        return dict.fromkeys(_SHOWN)
    counts = {kind: 0 if call.get(grid) is None else len(call[grid]) for kind, (_, grid) in _SHOWN.items()}
    each = f"each of the {counts['image']} pictures, then one for each of the {counts['video']} clips"
    check_questions(questions, sum(counts.values()), each)
    return {"image": questions[: counts["image"]], "video": questions[counts["image"] :]}
