"""What the authors' config.json says, and the config of transformers that says the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from encoders import UserError, UserTypeError
from fastervlm.checkpoints.errors import reason

_LANGUAGE = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
_LLAVA = (("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."), *_LANGUAGE)
_VIDEO_LLAVA = (
    ("model.image_tower.image_tower.", "model.image_tower."),
    ("model.video_tower.video_tower.", "model.video_tower."),
    *_LANGUAGE,
)


@dataclass(frozen=True)
class CheckpointLayout:
    """One kind of checkpoint: the config class of transformers and how its weights are called here and there.

    Attributes:
        config: name of the config class.
        names: beginnings of weight names, the authors' and the one of transformers.
        towers: the keys of config.json that name the vision towers, and how the names of their weights begin in transformers.
    """

    config: str
    names: tuple[tuple[str, str], ...]
    towers: tuple[tuple[str, str], ...] = (("mm_vision_tower", "model.vision_tower."),)

    def rename(self, name: str) -> str:
        """The name of a weight in transformers; one that no beginning fits keeps its name, which no model has."""
        return next((new + name[len(old) :] for old, new in self.names if name.startswith(old)), name)


# By `image_aspect_ratio` and `mm_patch_merge_type`.
_LAYOUTS = {
    ("pad", "flat"): CheckpointLayout("LlavaConfig", _LLAVA),
    ("square", "flat"): CheckpointLayout("LlavaConfig", _LLAVA),
    ("anyres", "spatial_unpad"): CheckpointLayout("LlavaNextConfig", (*_LLAVA, ("model.image_newline", "model.image_newline"))),
}
_VIDEO = CheckpointLayout(
    "VideoLlavaConfig",
    _VIDEO_LLAVA,
    (("mm_image_tower", "model.image_tower."), ("mm_video_tower", "model.video_tower.")),
)
# What LLaVA's code takes a setting for if it is missing, and what it must be here.
_SUPPORTED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "model_type": (None, ("llava", "llava_llama")),
    "mm_projector_type": ("linear", ("mlp2x_gelu",)),
    "mm_vision_select_feature": ("patch", ("patch", "cls_patch")),
    "mm_use_im_start_end": (False, (False,)),
    "mm_use_x_start_end": (False, (False,)),
    "tie_word_embeddings": (False, (False,)),
}

# Settings of the language model that transformers takes at any value.
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def is_original(told: dict[str, Any]) -> bool:
    """Whether a config.json is of the authors' layout; transformers' own may bear the same `model_type`."""
    named = told.get("model_type") in ("llava_llama", "llava_mistral", "llava_mpt")
    return "text_config" not in told and (named or any(key.startswith("mm_") for key in told))


def find_layout(name: str, told: dict[str, Any]) -> CheckpointLayout:
    """The layout of a checkpoint, or `UserTypeError` if it is of a kind that is not supported."""
    for key, (default, supported) in _SUPPORTED.items():
        if (value := told.get(key, default)) not in supported:
            raise UserTypeError(
                f"{name} is a checkpoint in the layout of LLaVA's authors with {key}={value!r}, which is not supported; "
                f"it must be {' or '.join(map(repr, supported))}."
            )
    look = told.get("image_aspect_ratio") or "square", told.get("mm_patch_merge_type") or "flat"
    if told.get("mm_video_tower") and look[0] != "anyres":
        return _VIDEO
    if look not in _LAYOUTS or told.get("mm_video_tower"):
        raise UserTypeError(
            f"{name} is a checkpoint in the layout of LLaVA's authors with image_aspect_ratio={look[0]!r} and "
            f"mm_patch_merge_type={look[1]!r}; supported are pad or square with flat, and anyres with spatial_unpad."
        )
    return _LAYOUTS[look]


def build_config(
    name: str, told: dict[str, Any], layout: CheckpointLayout, vision: Any, image_token: int, video_token: int | None = None
) -> Any:
    """The config of transformers, with as many rows of vocabulary as the tokens of pictures and clips take."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    known = transformers.LlamaConfig().to_dict().keys() | {"rope_theta", "rope_scaling"}
    known -= {"architectures", "dtype", "model_type", "transformers_version"}
    try:
        text = transformers.LlamaConfig(**{key: value for key, value in told.items() if key in known})
        if nothing := [key for key in _SIZES if getattr(text, key) < 1]:
            raise ValueError(f"{nothing[0]}={getattr(text, nothing[0])}")
        text.vocab_size = max(told["vocab_size"], image_token + 1, (video_token or 0) + 1)
        settings = {
            "vision_config": vision,
            "text_config": text,
            "image_token_index": image_token,
            "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
            "vision_feature_layer": select_layer(told, vision.num_hidden_layers),
            "vision_feature_select_strategy": select_strategy(told),
        }
        if layout.config == "LlavaNextConfig":
            settings["image_grid_pinpoints"] = grid_pinpoints(told, vision.image_size)
        if layout is _VIDEO:
            settings |= {"video_token_index": video_token, "video_seq_length": 8 * (settings["image_seq_length"] + 1)}
        return getattr(transformers, layout.config)(**settings)
    except UserError:
        raise
    except (ArithmeticError, TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"The config.json of {name} cannot be used ({reason(error)}); download it again.") from error


def select_strategy(told: dict[str, Any]) -> str:
    """transformers' word for `mm_vision_select_feature`."""
    return {"patch": "default", "cls_patch": "full"}[told.get("mm_vision_select_feature", "patch")]


def select_layer(told: dict[str, Any], num_layers: int) -> int:
    """`mm_vision_select_layer`, which the tower must have."""
    layer = told.get("mm_vision_select_layer", -2)
    if type(layer) is not int or not -num_layers - 1 <= layer <= num_layers:
        raise UserError(
            f"mm_vision_select_layer={layer!r} of config.json is no layer of the vision tower, which has {num_layers}; "
            f"it must be a whole number from {-num_layers - 1} to {num_layers}."
        )
    return layer


def grid_pinpoints(told: dict[str, Any], crop: int) -> list[list[int]]:
    """The canvases of LLaVA-NeXT as (height, width) in pixels, whole crops; the authors write (width, height)."""
    canvases = told.get("image_grid_pinpoints")
    try:
        swapped = [[height, width] for width, height in canvases or ()]
    except (TypeError, ValueError):
        swapped = []
    if not swapped or not all(type(side) is int and side > 0 and side % crop == 0 for canvas in swapped for side in canvas):
        raise UserError(
            f"image_grid_pinpoints={canvases!r} of config.json is no list of [width, height] in multiples of the vision "
            f"tower's {crop} pixels; download config.json again."
        )
    return swapped
