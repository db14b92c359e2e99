"""Tiny random models of the classes that have no family of their own, and prompts of ids with pictures in them.

A picture is what the model's own processor would make of one; the stock model says how many tokens it has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from tests.support.family_cases import IMAGE_ID, SMALL, START_ID, STOP_ID, TEXT, VIDEO_ID, noise, of

Inputs = dict[str, Tensor]
SIGLIP: dict[str, Any] = SMALL | {"num_hidden_layers": 3, "image_size": 48, "patch_size": 8}  # 6 x 6 patches
QWEN2 = {"model_type": "qwen2", **TEXT, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Case:
    """A class.

    Attributes:
        make: makes the model.
        picture: the inputs of the picture of a seed, or of its tiles; those of different seeds are of different shapes where
            the model takes several.
        runs: how many placeholders stand side by side for it, run by run.
        together: the inputs of pictures, row by row, as one call.
        types: the argument that tells pictures from words, and the number that words, pictures and answers have there.
    """

    make: Callable[[], Any]
    picture: Callable[[int], Inputs]
    runs: Callable[[int], list[int]]
    together: Callable[[Sequence[Sequence[Inputs]]], Inputs] | None = None
    types: tuple[str, tuple[int, int, int]] | None = None


def model_of(name: str, **settings: Any) -> Any:
    config = getattr(transformers, f"{name}Config")
    return getattr(transformers, f"{name}ForConditionalGeneration")(of(config, **settings))


def tiles_of(seed: int) -> int:
    return 1 + seed % 2


def tiles(seed: int) -> Inputs:
    """One or two tiles."""
    return {"pixel_values": noise(seed, tiles_of(seed), 3, 48, 48)}


def one(seed: int) -> Inputs:
    return {"pixel_values": noise(seed, 1, 3, 48, 48)}


def in_clips(seed: int) -> Inputs:
    """The tiles of a picture as the one dimension more that PerceptionLM has."""
    return {"pixel_values": noise(seed, 1, 1, 3, 48, 48)}


def beside(rows: Sequence[Sequence[Inputs]]) -> Inputs:
    """Pictures of a row side by side, (rows, most, ...), filled up with zeros."""
    own = [torch.cat([picture["pixel_values"] for picture in row]) if row else noise(0, 0, 3, 48, 48) for row in rows]
    most = max(map(len, own))
    return {"pixel_values": torch.stack([F.pad(row, (0, 0) * 3 + (0, most - len(row))) for row in own])}


def tall(rows: Sequence[Sequence[Inputs]]) -> Inputs:
    """Pictures of several sizes, filled up with zeros."""
    pictures = [picture for row in rows for picture in row]
    sizes = torch.cat([picture["image_sizes"] for picture in pictures])
    high, wide = sizes.amax(dim=0).tolist()
    padded = [F.pad(x, (0, wide - x.shape[-1], 0, high - x.shape[-2])) for x in (p["pixel_values"] for p in pictures)]
    return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


def aya() -> Any:
    text = {"model_type": "cohere2", **TEXT, "head_dim": 8, "num_key_value_heads": 1}
    return model_of("AyaVision", vision_config=_siglip(), text_config=text, image_token_index=IMAGE_ID, downsample_factor=2)


def cohere2() -> Any:
    text = {"model_type": "cohere2", **TEXT, "head_dim": 8, "num_key_value_heads": 1}
    sizes = {"downsample_factor": 2, "alignment_intermediate_size": 64}
    return model_of("Cohere2Vision", vision_config=_siglip(), text_config=text, image_token_id=IMAGE_ID, **sizes)


def _siglip() -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False}


def gemma3() -> Any:
    text = {
        "model_type": "gemma3_text",
        **TEXT,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    }
    ids = {"image_token_index": IMAGE_ID, "boi_token_index": START_ID, "eoi_token_index": STOP_ID}
    return model_of("Gemma3", vision_config=_siglip(), text_config=text, mm_tokens_per_image=9, **ids)


def paligemma() -> Any:
    text = {"model_type": "gemma", **TEXT, "head_dim": 8, "num_key_value_heads": 1}
    vision = _siglip() | {"projection_dim": 32}
    return model_of("PaliGemma", vision_config=vision, text_config=text, image_token_index=IMAGE_ID, projection_dim=32)


def with_shuffle(name: str) -> Any:
    text = {"model_type": "llama", **TEXT}
    return model_of(name, vision_config=SIGLIP, text_config=text, image_token_id=IMAGE_ID, scale_factor=2)


def mistral3() -> Any:
    vision = {"model_type": "pixtral", **SMALL, "num_hidden_layers": 3, "image_size": 112, "patch_size": 7, "head_dim": 16}
    text = {"model_type": "mistral", **TEXT, "head_dim": 16, "num_key_value_heads": 1}
    more = {"image_token_index": IMAGE_ID, "spatial_merge_size": 2, "vision_feature_layer": -1}
    return model_of("Mistral3", vision_config=vision, text_config=text, **more)


SIZES = [(56, 28), (42, 56), (28, 28)]


def sized(seed: int) -> Inputs:
    high, wide = SIZES[seed % 3]
    return {"pixel_values": noise(seed, 1, 3, high, wide), "image_sizes": torch.tensor([[high, wide]])}


def lines_of(seed: int) -> list[int]:
    """A run for each row of tokens, which tokens of another kind end."""
    high, wide = SIZES[seed % 3]
    return [wide // 14] * (high // 14)


def perception() -> Any:
    model_args = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "img_size": [48, 48],
        "patch_size": 8,
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [6, 6],
    }
    name = "vit_pe_core_large_patch14_336"
    vision = {
        "model_type": "timm_wrapper",
        "architecture": name,
        "model_args": model_args,
        "do_pooling": False,
        "num_classes": 0,
    }
    ids = {"image_token_id": IMAGE_ID, "video_token_id": VIDEO_ID}
    more = {"vision_use_cls_token": True, "projector_pooling_ratio": 2}
    return model_of("PerceptionLM", vision_config=vision, text_config={"model_type": "llama", **TEXT}, **ids, **more)


def lfm2() -> Any:
    vision = {
        "model_type": "siglip2_vision_model",
        **SMALL,
        "num_hidden_layers": 3,
        "patch_size": 7,
        "num_patches": 64,
        "vision_use_head": False,
    }
    text = {
        "model_type": "lfm2",
        **TEXT,
        "num_key_value_heads": 1,
        "block_dim": 32,
        "conv_L_cache": 3,
        "block_ff_dim": 64,
        "block_multiple_of": 16,
        "layer_types": ["conv", "full_attention"],
    }
    return model_of("Lfm2Vl", vision_config=vision, text_config=text, image_token_id=IMAGE_ID, downsample_factor=2)


SHAPES = [(4, 6), (8, 4), (4, 4)]


def shaped(seed: int) -> Inputs:
    """Patches, filled up to 32."""
    rows, columns = SHAPES[seed % 3]
    real = torch.arange(32)[None] < rows * columns
    pixels = noise(seed, 1, 32, 3 * 49) * real[..., None]
    return {"pixel_values": pixels, "pixel_attention_mask": real.long(), "spatial_shapes": torch.tensor([[rows, columns]])}


def packed(seed: int) -> Inputs:
    rows, columns = SHAPES[seed % 3]
    return {"pixel_values": noise(seed, rows * columns, 3 * 2 * 49), "image_grid_thw": torch.tensor([[1, rows, columns]])}


def of_shape(seed: int) -> list[int]:
    rows, columns = SHAPES[seed % 3]
    return [rows * columns // 4]


MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
STARTS = {"vision_start_token_id": START_ID, "vision_end_token_id": STOP_ID}


def qwen3_5() -> Any:
    vision: dict[str, Any] = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 7}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "spatial_merge_size": 2, "temporal_patch_size": 2}
    text = TEXT | {"num_key_value_heads": 1, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    text |= {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}
    return model_of(
        "Qwen3_5", vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, **STARTS
    )


def glm4v() -> Any:
    vision: dict[str, Any] = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 7}
    vision |= {"out_hidden_size": 32, "image_size": 56, "spatial_merge_size": 2, "temporal_patch_size": 2}
    text = TEXT | {"num_key_value_heads": 1, "rope_parameters": MROPE}
    starts = {"image_start_token_id": START_ID, "image_end_token_id": STOP_ID}
    return model_of("Glm4v", vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, **starts)


def nine(seed: int) -> list[int]:
    return [9] * tiles_of(seed)


PLACED = ("mm_token_type_ids", (0, 1, 0))
CASES: dict[str, Case] = {
    "AyaVision": Case(aya, tiles, nine),
    "Cohere2Vision": Case(cohere2, tiles, lambda seed: [9 * tiles_of(seed)]),
    "Gemma3": Case(gemma3, one, lambda seed: [9], types=("token_type_ids", (0, 1, 0))),
    "Glm4v": Case(glm4v, packed, of_shape, types=PLACED),
    "Idefics3": Case(lambda: with_shuffle("Idefics3"), tiles, nine, beside),
    "Lfm2Vl": Case(lfm2, shaped, of_shape),
    "Mistral3": Case(mistral3, sized, lines_of, tall),
    "PaliGemma": Case(paligemma, one, lambda seed: [36], types=("token_type_ids", (0, 0, 1))),
    "PerceptionLM": Case(perception, in_clips, lambda seed: [9]),
    "Qwen3_5": Case(qwen3_5, packed, of_shape, types=PLACED),
    "SmolVLM": Case(lambda: with_shuffle("SmolVLM"), tiles, nine, beside),
}


def prompt(case: Case, rows: Sequence[Sequence[int]], side: str = "left", first: int = 0, more: Sequence[int] = ()) -> Inputs:
    """The inputs of a batch: words, then for each picture its runs of placeholders and words behind, `more` at the end.

    Rows differ in their words by their number, the first of which is `first`.
    """
    ids = []
    for number, seeds in enumerate(rows, first):
        row = [1, 10 + number, 11]
        for seed in seeds:
            row += [token for run in case.runs(seed) for token in (START_ID, *[IMAGE_ID] * run)] + [20 + seed, 21]
        ids.append([*row, 12, 13 + number, *more])
    longest = max(map(len, ids))
    pads = [[0] * (longest - len(row)) for row in ids]
    batch = torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(pads, ids, strict=True)])
    pictures = [[case.picture(seed) for seed in seeds] for seeds in rows]
    shown: Inputs = {}
    if any(pictures):
        flat = [picture for row in pictures for picture in row]
        shown = case.together(pictures) if case.together else {k: torch.cat([p[k] for p in flat]) for k in flat[0]}
    return {"input_ids": batch, "attention_mask": (batch != 0).long(), **typed(case, batch, len(more)), **shown}


def typed(case: Case, ids: Tensor, answered: int = 0) -> Inputs:
    """What tells pictures from words in prompts that end with so many tokens of answers."""
    if case.types is None:
        return {}
    name, (word, picture, answer) = case.types
    types = torch.where(ids == IMAGE_ID, picture, word)
    types[:, ids.shape[1] - answered :] = answer
    return {name: types}
