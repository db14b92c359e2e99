"""The tiny LLaVA-NeXT: projector, newline and language model of the tiny LLaVA, tuned on crops of larger scenes.

A scene is two or three crops wide or high, so that in the overview its objects are too small to read and only the crops show
them. The tower is the tiny LLaVA's and stays frozen. Half of the batches stand as transformers lays crops out, the others as
the reference implementation does (padding and all, no newline), so that the model answers under both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from fastervlm.families.llava_next.crops import NEWLINE, CropLayout
from playground.language import CHAT_TEMPLATE, LanguageTask, Questions, llava_config
from playground.scenes import CELL, CROPPED_SHAPES, draw, questions
from playground.tower import GRID, WIDTH
from playground.trainer import Phase

# Canvases as (height, width) in crops, the usual five.
_CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def pinpoints(side: int) -> list[list[int]]:
    """The canvases in pixels, for crops of `side` patches."""
    return [[high * side * CELL, wide * side * CELL] for high, wide in _CANVASES]


def image_processor(side: int = GRID) -> LlavaNextImageProcessor:
    """Cuts pictures into crops of `side` x `side` patches."""
    pixels = side * CELL
    crop = {"height": pixels, "width": pixels}
    return LlavaNextImageProcessor(size={"shortest_edge": pixels}, crop_size=crop, image_grid_pinpoints=pinpoints(side))


class CropsTask(LanguageTask):
    """`LanguageTask` over overview and crops, begun from a trained tiny LLaVA."""

    def __init__(self, llava: Any) -> None:
        super().__init__(llava.model.vision_tower)
        self.projector.load_state_dict(llava.model.multi_modal_projector.state_dict())
        self.language.model.load_state_dict(llava.model.language_model.state_dict())
        self.language.lm_head.load_state_dict(llava.lm_head.state_dict())
        self.image_newline = nn.Parameter(torch.randn(WIDTH) * WIDTH**-0.5)

    def visual(self, batch: dict[str, Tensor]) -> Tensor:
        """The projected visual tokens (B, V, D) of pixel_values (B, crops, 3, H, W), in the order of batch["kept"] (V,)."""
        crops = batch["pixel_values"]
        patches = self.patches(crops.flatten(0, 1), batch["offset"]).reshape(len(crops), -1, WIDTH)
        kept = batch["kept"]
        visual = self.projector(patches[:, kept.clamp(min=0)])
        return torch.where((kept == NEWLINE)[:, None], self.image_newline.to(visual.dtype), visual)


class CropQuestions(Questions):
    """Batches of larger scenes, cut into crops."""

    def crops(self, seed: tuple[int, ...], size: int, side: int, whole: float, per_picture: int = 8) -> dict[str, Tensor]:
        """Packed questions about `size` scenes of one shape, in crops of `side` patches; see `Questions.batch`."""
        rng = np.random.default_rng(seed)
        shape = CROPPED_SHAPES[rng.integers(len(CROPPED_SHAPES))]
        cells = shape[0] * side // 2, shape[1] * side // 2
        scenes = [draw(rng, cells) for _ in range(size)]
        asked = self.pack([questions(rng, scene)[:per_picture] for scene in scenes])
        pictures = image_processor(side)([scene.image for scene in scenes], return_tensors="pt")
        everything = bool(rng.random() < whole)
        return {
            "pixel_values": pictures["pixel_values"],
            "offset": torch.from_numpy(rng.integers(0, GRID - side + 1, 2)),
            "kept": _kept(rng, (cells[0] * CELL, cells[1] * CELL), side, everything),
            "whole": torch.tensor(everything),
            **asked,
        }


def _kept(rng: np.random.Generator, size: tuple[int, int], side: int, everything: bool) -> Tensor:
    """(V,) the patches behind the tokens that are shown, all or a random subset (K = N u^1.5), in either layout."""
    cut = CropLayout.native if rng.random() < 0.5 else CropLayout.paper
    layout = cut(size, pinpoints(side), side * CELL, side)
    count = layout.crops * side * side
    share = 1.0 if everything else max(0.01, float(rng.random()) ** 1.5)
    kept = torch.from_numpy(rng.random(count) < share)
    return layout.source[layout.keep(kept, str(rng.choice(("kept", "all", "none"))))]


def phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """Small crops first, then crops of the real size, mostly with a part of their tokens."""
    data = CropQuestions(tokenizer)

    def small(step: int) -> dict[str, Tensor]:
        return data.crops((seed, 7, step), 12, GRID // 2, 0.4, 12)

    return [
        Phase("crops, small", int(300 * scale), 8e-4, small),
        Phase("crops", int(400 * scale), 8e-4, lambda step: data.crops((seed, 8, step), 6, GRID, 0.12, 12)),
    ]


def export(task: CropsTask, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the trained parts as a LlavaNextForConditionalGeneration with its processor, float32 safetensors."""
    base = llava_config()
    config = LlavaNextConfig(
        vision_config=base.vision_config,
        text_config=base.text_config,
        image_token_index=base.image_token_id,
        image_seq_length=base.image_seq_length,
        image_grid_pinpoints=pinpoints(GRID),
    )
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        model.model.image_newline.copy_(task.image_newline)
    processor = LlavaNextProcessor(
        image_processor(),
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    task.save(model, processor, out)
