"""The shapes of published models, by hand: enough to build them with random weights and to count their work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from encoders.errors import UserError
from fastervlm.families.base import Family
from fastervlm.families.registry import family_of_type

# Token ids of the placeholders.
TOKENS = {"image": 3, "video": 4}
_CROPS = 5  # an overview and 2 x 2


@dataclass(frozen=True)
class Shape:
    """What a model looks like, and what a benchmark shows it.

    Attributes:
        name: what it is called on the command line.
        kind: the `model_type` of its config in transformers.
        tower: arguments of its `CLIPVisionConfig`.
        decoder: arguments of its `LlamaConfig`.
        frames: frames of a clip; 0 for models that are shown pictures.
    """

    name: str
    kind: str
    tower: Mapping[str, int]
    decoder: Mapping[str, int]
    frames: int = 0

    @property
    def side(self) -> int:
        """Patches along one edge of a picture, crop or frame."""
        return self.tower["image_size"] // self.tower["patch_size"]

    @property
    def num_visual_tokens(self) -> int:
        """N, the patches of a picture, crop or frame."""
        return self.side**2

    @property
    def family(self) -> Family:
        """The kind of model."""
        return family_of_type(self.kind)

    @property
    def parts(self) -> int:
        """How many times the tower runs for one prompt: crops of a picture (an overview and 2 x 2), or frames of a clip."""
        return {None: 1, "crops": _CROPS, "frames": self.frames}[self.family.parts]

    @property
    def separators(self) -> int:
        """Tokens of an unpruned prompt that are neither text nor patches, such as newlines or [CLS]."""
        return self.family.separators(self.side, self.frames)

    @cached_property
    def config(self) -> Any:
        """The config of transformers."""
        from transformers import CLIPVisionConfig, LlamaConfig

        ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
        vision, text = CLIPVisionConfig(**self.tower), LlamaConfig(**self.decoder, **ends)  # type: ignore[arg-type]
        return self.family.config(vision, text, TOKENS, self.frames)


def _tower(width: int, inner: int, layers: int, heads: int, image: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


def _decoder(width: int, inner: int, layers: int, heads: int, kv_heads: int, words: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
    }


_LARGE_336 = _tower(1024, 4096, 24, 16, 336, 14)  # CLIP ViT-L/14 for 336 pixels
_LARGE_224 = _tower(1024, 4096, 24, 16, 224, 14)
_TINY_TOWER = _tower(32, 64, 3, 2, 32, 8)
_VICUNA_7B = _decoder(4096, 11008, 32, 32, 32, 32064)
_VICUNA_13B = _decoder(5120, 13824, 40, 40, 40, 32064)
_LLAMA_1B = _decoder(2048, 5632, 22, 32, 4, 32000)  # TinyLlama's shape, 1.1 B parameters
_TINY_LLAMA = _decoder(32, 64, 3, 4, 2, 260)

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-1.5-7b", "llava", _LARGE_336, _VICUNA_7B),
        Shape("llava-1.5-13b", "llava", _LARGE_336, _VICUNA_13B),
        Shape("llava-1.5-1b", "llava", _LARGE_336, _LLAMA_1B),
        Shape("llava-next-7b", "llava_next", _LARGE_336, _VICUNA_7B),
        Shape("video-llava-7b", "video_llava", _LARGE_224, _VICUNA_7B, frames=8),
        Shape("tiny", "llava", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-next", "llava_next", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-video", "video_llava", _TINY_TOWER, _TINY_LLAMA, frames=3),
    )
}


def get_shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SHAPES:
        raise UserError(f"There is no shape {name!r}; choose one of: {', '.join(SHAPES)}.")
    return SHAPES[name]
