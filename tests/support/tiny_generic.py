"""The processor that goes with each tiny model of a class without a family of its own, as transformers keeps it in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AyaVisionProcessor,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    PaliGemmaProcessor,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.support import family_cases
from tests.support.family_cases import IMAGE_ID, START_ID, STOP_ID, VIDEO_ID
from tests.support.generic_cases import CASES
from tests.support.tiny_families import chat, qwen_processor, tokenizer

SIDE = 48  # pixels of a tile
SQUARE: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
LONGEST: dict[str, Any] = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
SPLIT = ("<image>", "<video>", "<fake_token_around_image>", "<end_of_utterance>")


def aya() -> Any:
    words = tokenizer("<|IMG_PATCH|>", "<video>", "<|START_OF_IMG|>", "<|END_OF_IMG|>")
    tiles = GotOcr2ImageProcessor(**SQUARE, crop_to_patches=True, min_patches=1, max_patches=3)
    sizes: dict[str, Any] = {"patch_size": 8, "downsample_factor": 2, "img_size": SIDE}
    return AyaVisionProcessor(tiles, words, **sizes, chat_template=chat("<image>", ""))


def cohere2() -> Any:
    words = tokenizer(
        "<image>", "<line>", "<start>", "<stop>", boi_token="<start>", eoi_token="<stop>", img_line_break_token="<line>"
    )
    limits: dict[str, Any] = {"patch_size": 3, "min_patches": 1, "max_patches": 3}
    tiles = Cohere2VisionImageProcessor(**SQUARE, **limits)
    return Cohere2VisionProcessor(tiles, words, chat_template=chat("<image>", ""))


def gemma3() -> Any:
    words = tokenizer("<image>", "<video>", "<start>", "<stop>", boi_token="<start>", eoi_token="<stop>")
    return Gemma3Processor(Gemma3ImageProcessor(**SQUARE), words, chat_template=chat("<start>", ""), image_seq_length=9)


def paligemma() -> Any:
    """Published ones have no chat template."""
    return PaliGemmaProcessor(
        SiglipImageProcessor(**SQUARE, image_seq_length=36), tokenizer("<image>", "<video>", "<a>", "<b>")
    )


def idefics3() -> Any:
    return Idefics3Processor(
        Idefics3ImageProcessor(**LONGEST), tokenizer(*SPLIT), image_seq_len=9, chat_template=chat("<image>", "")
    )


def smolvlm() -> Any:
    clips = SmolVLMVideoProcessor(**LONGEST)
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**LONGEST), tokenizer(*SPLIT), clips, image_seq_len=9, chat_template=chat("<image>", "<video>")
    )


def mistral3() -> Any:
    pictures = PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    words = tokenizer("[IMG]", "[IMG_BREAK]", "<start>", "[IMG_END]")
    return PixtralProcessor(pictures, words, patch_size=7, spatial_merge_size=2, chat_template=chat("[IMG]", ""))


def lfm2() -> Any:
    words = tokenizer("<image>", "<video>", "<|image_start|>", "<|image_end|>")
    limits: dict[str, Any] = {"min_tiles": 2, "max_tiles": 4, "min_image_tokens": 1, "max_image_tokens": 4}
    limits |= {"encoder_patch_size": 7, "tile_size": 28, "max_num_patches": 16}
    tiles = Lfm2VlImageProcessor(**limits)
    return Lfm2VlProcessor(tiles, words, chat_template=chat("<image>", ""))


def perception() -> Any:
    words = tokenizer("<image>", "<video>", "<start>", "<stop>")
    tiles = PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=3)
    template = chat("<image>", "<video>")
    return PerceptionLMProcessor(PerceptionLMVideoProcessor(**SQUARE), tiles, words, patch_size=8, chat_template=template)


def glm4v() -> Any:
    size: dict[str, Any] = {"size": {"shortest_edge": 28 * 28, "longest_edge": 2 * 56 * 56}}
    grid: dict[str, Any] = size | {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2}
    words = tokenizer("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>")
    template = chat("<|begin_of_image|><|image|><|end_of_image|>", "")
    return Glm4vProcessor(Glm4vImageProcessor(**grid), words, Glm4vVideoProcessor(**grid), chat_template=template)


# By the names of their cases.
PROCESSORS: dict[str, Callable[[], Any]] = {
    "AyaVision": aya,
    "Cohere2Vision": cohere2,
    "Gemma3": gemma3,
    "Glm4v": glm4v,
    "Idefics3": idefics3,
    "Lfm2Vl": lfm2,
    "Mistral3": mistral3,
    "PaliGemma": paligemma,
    "PerceptionLM": perception,
    "Qwen3_5": lambda: qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "SmolVLM": smolvlm,
}


# What tests of these processors carry; `numbers_in_words` is a fixture of tests/conftest.py, the warning is of PaliGemma's.
MARKS = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("numbers_in_words"),
]

SEEDS = {"Cohere2Vision": 1, "Gemma3": 1, "Glm4v": 1}  # at which the answers tell what is shown


def save(name: str, folder: Path) -> Path:
    """Write the model and the processor of a case into the folder, and return it."""
    model, processor = family_cases.random(CASES[name].make, SEEDS.get(name, 0)), PROCESSORS[name]()
    if name == "PaliGemma":  # whose layers else add too little to the embedding of the last token, with which they are tied
        with torch.no_grad():
            for weight in model.get_decoder().layers.parameters():
                weight *= 3 if weight.dim() == 2 else 1
    # Random models would answer with placeholders, for which there is no picture, and tied ones with what the prompt ends with.
    ends = processor.tokenizer("\n")["input_ids"]
    model.generation_config.suppress_tokens = [IMAGE_ID, VIDEO_ID, START_ID, STOP_ID, *ends]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
