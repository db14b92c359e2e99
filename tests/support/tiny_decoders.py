"""Tiny random LLaVAs over several language models, four layers deep, wide enough that attention and answers are not flat."""

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from tests.support import tiny

LAYERS = 4
VIDEO_ID = 259
FRAMES = 2
_SIZE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 260,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "llama": lambda: LlamaConfig(**_SIZE),
    "mistral": lambda: MistralConfig(**_SIZE, sliding_window=12),
    "mistral-full": lambda: MistralConfig(**_SIZE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_SIZE, use_sliding_window=False),
    "qwen2-mixed": lambda: Qwen2Config(
        **_SIZE,
        use_sliding_window=True,
        sliding_window=14,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3": lambda: Qwen3Config(**_SIZE, use_sliding_window=False),
}


def llava(decoder="llama", seed=0, attention="sdpa") -> Any:
    """LLaVA-1.5's way with pictures."""
    return _random(LlavaForConditionalGeneration, LlavaConfig, decoder, seed, attention, image_seq_length=tiny.PATCHES)


def llava_next(decoder="llama", seed=0, attention="sdpa") -> Any:
    """LLaVA-NeXT's way with pictures."""
    return _random(
        LlavaNextForConditionalGeneration, LlavaNextConfig, decoder, seed, attention, image_grid_pinpoints=tiny.pinpoints()
    )


def video_llava(decoder="llama", seed=0, attention="sdpa") -> Any:
    """Video-LLaVA's way with pictures and videos."""
    return _random(
        VideoLlavaForConditionalGeneration,
        VideoLlavaConfig,
        decoder,
        seed,
        attention,
        video_token_index=VIDEO_ID,
        image_seq_length=tiny.PATCHES,
        video_seq_length=FRAMES * (tiny.PATCHES + 1),
    )


def _random(model_class, config_class, decoder, seed, attention, **changes) -> Any:
    torch.manual_seed(seed)
    config = config_class(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=2,
            num_hidden_layers=3,
            image_size=tiny.IMAGE,
            patch_size=tiny.PATCH,
        ),
        text_config=DECODERS[decoder](),
        image_token_index=3,
        **changes,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.set_attn_implementation(attention)
    return model
