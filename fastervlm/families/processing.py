"""What the processors of LLaVA models have in common."""

from __future__ import annotations

from typing import Any


def complete(processor: Any, config: Any) -> Any:
    """The processor with what older ones do not say: how many placeholders a picture takes; the config does. Pads go left."""
    processor.tokenizer.padding_side = "left"
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if config.vision_config.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # the [CLS] token, which the strategy "default" takes off again
    return processor


def square(config: Any) -> dict[str, Any]:
    """How an image processor brings pictures to the size that the tower reads."""
    size = config.vision_config.image_size
    return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def placeholders(config: Any, tokenizer: Any) -> dict[str, Any]:
    """How a processor counts the placeholders that a picture takes."""
    return {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
