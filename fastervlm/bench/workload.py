"""What is measured, and what it is asked: made-up pictures or clips, and a prompt of as many words as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from encoders.errors import UserError
from fastervlm.bench.build import make_processor, random_model
from fastervlm.bench.shapes import PHOTOGRAPH, Shape
from fastervlm.checkpoints.load import load
from fastervlm.eval.inputs import inputs_of
from fastervlm.families.base import PIXELS, Family
from fastervlm.families.registry import family_of, find_family
from fastervlm.generation.inputs import visual

_BEFORE = 35 / 64  # share of the text in front of the picture, as in LLaVA's prompts


@dataclass
class Workload:
    """A model, its processor, and the calls it is measured by.

    Attributes:
        name: of the shape, or of the checkpoint.
        model: of a kind that `fastervlm.prune` knows.
        processor: its processor.
        shape: what to build it by; None for a checkpoint.
        text_tokens: words of a prompt around its picture; real tokenizers may cut them into more.
    """

    name: str
    model: Any
    processor: Any
    shape: Shape | None = None
    text_tokens: int = 64

    @classmethod
    def of_shape(cls, shape: Shape, dtype: torch.dtype, device: torch.device, text_tokens: int = 64) -> Workload:
        """A model of that shape with random weights, made on the device."""
        return cls(shape.name, random_model(shape, dtype, device), make_processor(shape), shape, text_tokens)

    @classmethod
    def of_checkpoint(
        cls, name: str, dtype: str | None, device: str | None, quantize: Literal["4bit", "8bit"] | None, text_tokens: int = 64
    ) -> Workload:
        """A checkpoint, a folder or a name on the hub, as `fastervlm.load` reads it."""
        model, processor = load(name, dtype=dtype, device=device, quantize=quantize)
        return cls(Path(name).name or name, model, processor, None, text_tokens)

    def __post_init__(self) -> None:
        if self.text_tokens < 2:
            raise UserError(
                f"--text-tokens is {self.text_tokens}; it must be at least 2, one in front of the picture and one behind."
            )
        family = find_family(self.model)
        layer = getattr(self.model.config, "vision_feature_layer", -1)
        if family is None or not isinstance(layer, int):
            raise UserError(
                f"{self.name} reads several layers of its tower or is of a kind that is not known; choose another model."
            )

    @property
    def family(self) -> Family:
        """What kind of model it is."""
        return family_of(self.model, "measured")

    @property
    def kind(self) -> Literal["image", "video"]:
        """What it is shown: clips, if all that it is shown comes in frames."""
        return "video" if self.family.parts == "frames" else "image"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @cached_property
    def num_visual_tokens(self) -> int:
        """N, the tokens of a picture, crop or frame; where they are as many as its shape asks for, of the one it is shown."""
        told = self.family.num_visual_tokens(self.model.config, self.kind)
        return self.visual_tokens(self.process(1)["input_ids"]) if told is None else told

    @cached_property
    def parts(self) -> int:
        """How many crops or frames each prompt has; 1 for a picture that is not cut."""
        pixels = self.process(1)[PIXELS[self.kind][0]]
        if pixels.dim() == 4 and self.family.parts == "crops":
            return len(pixels)
        return pixels.shape[1] if pixels.dim() == 5 else 1

    def visual_tokens(self, ids: Any) -> int:
        """Placeholders in each row of ids (B, T)."""
        return int(visual(self.model, ids)[0].sum())

    def process(self, batch: int) -> Any:
        """What the processor makes of the batch's pictures and text, moved to the model's device and dtype."""
        before = max(1, round(_BEFORE * self.text_tokens))
        before = min(before, self.text_tokens - 1)
        token = getattr(self.processor, f"{self.kind}_token", f"<{self.kind}>")
        text = f"{'w ' * before}{token}{' w' * (self.text_tokens - before)}"
        pictures = [[picture] for picture in self._shown(batch)] if self.kind == "image" else []
        clips = {"videos": self._shown(batch)} if self.kind == "video" else {}
        inputs = inputs_of(self.processor, [text] * batch, pictures, **clips)
        return inputs.to(self.device, self.model.dtype)

    def _shown(self, batch: int) -> list[Any]:
        """That many pictures, or clips (F, H, W, 3), of noise; always the same."""
        while len(self._known) < batch:
            self._known.append(self._noise(len(self._known)))
        return self._known[:batch]

    @cached_property
    def _known(self) -> list[Any]:
        return []

    def _noise(self, seed: int) -> Any:
        from PIL import Image

        rng = np.random.default_rng(seed)
        if self.kind == "video":
            frames = self.shape.frames if self.shape else 8
            return rng.integers(0, 256, (frames, *self._size, 3), dtype=np.uint8)
        return Image.fromarray(rng.integers(0, 256, (*self._size, 3), dtype=np.uint8))

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width of a photograph; where it is cut, of a square that fills 2 x 2 crops."""
        if self.family.parts == "crops":
            side = getattr(self.model.config.vision_config, "image_size", PHOTOGRAPH)
            side = 2 * (side if isinstance(side, int) else side[0])
            return side, side
        return PHOTOGRAPH


def check_numbers(**numbers: int) -> None:
    """Refuse numbers below 1, by the names of their options."""
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
