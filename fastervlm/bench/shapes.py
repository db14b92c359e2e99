"""The shapes of published models, by hand: enough to build them with random weights and to count their work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from encoders.errors import UserError
from fastervlm.families.base import Family
from fastervlm.families.registry import family_of_type

# Token ids of the placeholders.
TOKENS = {"image": 3, "video": 4}
PHOTOGRAPH = 480, 640  # height and width
_CROPS = 5  # an overview and 2 x 2


@dataclass(frozen=True)
class Shape:
    """What a model looks like, and what a benchmark shows it.

    Attributes:
        name: what it is called on the command line.
        kind: the `model_type` of its config in transformers.
        tower: arguments of the config of its tower.
        decoder: those of its language model.
        frames: frames of a clip; 0 for models that are shown pictures.
    """

    name: str
    kind: str
    tower: Mapping[str, Any]
    decoder: Mapping[str, Any]
    frames: int = 0

    @cached_property
    def num_visual_tokens(self) -> int:
        """N, the tokens of a picture, crop or frame; of one in its own shape those of a photograph of `PHOTOGRAPH` pixels."""
        told = self.family.num_visual_tokens(self.config, "video" if self.frames else "image")
        if told is not None:
            return told
        rows, columns = self.family.grid(self.config, *PHOTOGRAPH)
        return rows * columns // self.config.vision_config.spatial_merge_size**2

    @property
    def side(self) -> int:
        """Tokens along one edge of a square picture, crop or frame."""
        return math.isqrt(self.num_visual_tokens)

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

    def with_layers(self, layers: int | None) -> Shape:
        """The same with so many layers in its language model; None leaves them."""
        if layers is None:
            return self
        most = self.decoder["num_hidden_layers"]
        if not 1 <= layers <= most:
            raise UserError(f"--llm-layers is {layers}, but the language model of {self.name} has {most}; give 1 to {most}.")
        return replace(self, decoder={**self.decoder, "num_hidden_layers": layers})

    @cached_property
    def config(self) -> Any:
        """The config of transformers."""
        ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
        vision, text = self.family.configs(self.tower, {**ends, **self.decoder})
        return self.family.config(vision, text, TOKENS, self.frames)


_LONG = 32768  # positions that the newer language models are made for


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
_QWEN_7B = _decoder(3584, 18944, 28, 28, 4, 152064) | {"max_position_embeddings": _LONG}  # Qwen2 and Qwen2.5
_SIGLIP_384 = _tower(1152, 4304, 26, 16, 384, 14)  # so400m without its last block, as in the published checkpoints
_INTERNVIT_448 = _tower(1024, 4096, 24, 16, 448, 14)  # InternViT-300M
_QWEN_TOWER: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
_TINY_QWEN_TOWER: dict[str, Any] = _QWEN_TOWER | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "depth": 3,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-1.5-7b", "llava", _LARGE_336, _VICUNA_7B),
        Shape("llava-1.5-13b", "llava", _LARGE_336, _VICUNA_13B),
        Shape("llava-1.5-1b", "llava", _LARGE_336, _LLAMA_1B),
        Shape("llava-next-7b", "llava_next", _LARGE_336, _VICUNA_7B),
        Shape("video-llava-7b", "video_llava", _LARGE_224, _VICUNA_7B, frames=8),
        Shape("llava-onevision-7b", "llava_onevision", _SIGLIP_384, _QWEN_7B),
        Shape("internvl3-8b", "internvl", _INTERNVIT_448, _QWEN_7B | {"vocab_size": 151674}),
        Shape("qwen2.5-vl-7b", "qwen2_5_vl", _QWEN_TOWER, _QWEN_7B),
        Shape("tiny", "llava", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-next", "llava_next", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-video", "video_llava", _TINY_TOWER, _TINY_LLAMA, frames=3),
        Shape("tiny-onevision", "llava_onevision", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-internvl", "internvl", _TINY_TOWER, _TINY_LLAMA),
        Shape("tiny-qwen2.5", "qwen2_5_vl", _TINY_QWEN_TOWER, _TINY_LLAMA),
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
