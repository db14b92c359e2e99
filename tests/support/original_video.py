"""Tiny Video-LLaVAs in the layout of their authors, written weight by weight, and the plain way to their logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from fastervlm.families.video_llava.model import TemporalVideoLlava
from tests.support import original, plain_languagebind
from tests.support.plain import pictures

IMAGE, PATCH, FRAMES = original.IMAGE, original.PATCH, 4
IMAGE_ID, VIDEO_ID = original.VOCABULARY, original.VOCABULARY + 1
NAMES = {"image": "LanguageBind/tower_of_pictures", "video": "LanguageBind/tower_of_clips"}
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
BOTH, NONE = ("image", "video"), ()
WAYS = [
    (True, "bin", BOTH),
    (True, "safetensors", NONE),
    (True, "safetensors", ("video",)),
    (True, "bin", ("image",)),
    (False, "bin", BOTH),
    (False, "safetensors", NONE),
]
ASKED = ["USER: <video>\nWhat is shown? ASSISTANT:", "USER: <image>\nHow many are there, and of which colour? ASSISTANT:"]


def stock(timed=True, seed=0, **changes) -> Any:
    """A random model with or without attention over time; its last two rows of vocabulary are for pictures and clips."""
    torch.manual_seed(seed)
    time = {"add_time_attn": timed, "num_frames": FRAMES}
    vision = {"num_hidden_layers": 3, "image_size": IMAGE, "patch_size": PATCH, "hidden_act": "gelu"}
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**SMALL, **(vision | time | changes)),
        text_config=LlamaConfig(
            **SMALL,
            num_hidden_layers=2,
            num_key_value_heads=1,
            vocab_size=original.VOCABULARY + 2,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            rms_norm_eps=1e-5,
            pad_token_id=0,
        ),
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_seq_length=original.PATCHES,
        video_seq_length=8 * (original.PATCHES + 1),
    )
    model = (TemporalVideoLlava if timed else VideoLlavaForConditionalGeneration)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def told(model, **changes) -> dict[str, Any]:
    """What the authors' config.json says."""
    said = original.told(model, "") | {"mm_image_tower": NAMES["image"], "mm_video_tower": NAMES["video"]}
    del said["mm_vision_tower"]
    return said | changes


def towers(model) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of both towers, as plain CLIP names them, and the table that older versions stored with them."""
    table = {"embeddings.position_ids": torch.arange(original.PATCHES + 1)[None]}
    return {kind: dict(getattr(model.model, f"{kind}_tower").state_dict()) | table for kind in NAMES}


def state(model, inside=("image", "video")) -> dict[str, torch.Tensor]:
    """All weights by the authors' names, with those towers that are stored inside."""
    kept = original.state(model, inside=False)
    for kind in inside:
        kept |= {f"model.{kind}_tower.{kind}_tower.{name}": value.clone() for name, value in towers(model)[kind].items()}
    return kept


def write_tower(model, kind, folder: Path, weights=True, **changes) -> None:
    """A whole LanguageBind, text side and all; or its config alone."""
    folder.mkdir(parents=True)
    vision = model.config.vision_config.to_dict() | {"force_patch_dropout": 0.5, "lora_r": 2, "video_decode_backend": "decord"}
    vision |= {} if kind == "video" else {"add_time_attn": False, "num_frames": 1}
    kinds = {"image": "LanguageBindImage", "video": "LanguageBindVideo"}
    config = {"model_type": kinds[kind], "projection_dim": 768, "vision_config": vision | changes}
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        named = {f"vision_model.{name}": value for name, value in towers(model)[kind].items()}
        more = {"logit_scale": torch.zeros(()), "visual_projection.weight": torch.zeros(4, 32)}
        more |= {
            "text_model.embeddings.position_ids": torch.arange(77)[None],
            "text_model.final_layer_norm.weight": torch.ones(4),
        }
        torch.save(named | more, folder / "pytorch_model.bin")


def write(model, folder: Path, scratch: Path, *, files="bin", inside=("image", "video"), count=2, beside=True) -> Path:
    """A whole checkpoint in `folder`, and the folders of its towers beside it; weights are there or inside."""
    folder.mkdir(parents=True)
    for kind, name in NAMES.items() if beside else ():
        write_tower(model, kind, folder.parent / Path(name).name, weights=kind not in inside)
    (folder / "config.json").write_text(json.dumps(told(model)))
    original.write_shards(state(model, inside), folder, files, count)
    original.write_tokenizer(folder, scratch)
    return folder


def clip(frames, seed=0, size=(40, 56)):
    """(F, H, W, 3) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 255, (frames, *size, 3), dtype=np.uint8)


def language(model) -> LlamaForCausalLM:
    """The language model alone, in a class of its own."""
    alone = LlamaForCausalLM(model.config.text_config).eval()
    weights = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()}
    alone.load_state_dict(weights | {"lm_head.weight": model.lm_head.weight})
    return alone


@torch.no_grad()
def features(model, kind, pixel_values, layer=-2, keep=None):
    """Projected features of pictures (B, 3, H, W), (B, N, D), or of clips (B, F, 3, H, W), (B * F, 1 + N, D), the plain way.

    With `keep` only [CLS] and so many patches of each frame, the best by its spatial map's [CLS] row, in their order.
    """
    config, weights = model.config.vision_config, getattr(model.model, f"{kind}_tower").state_dict()
    if kind == "image" or not config.add_time_attn:
        config = CLIPVisionConfig(**(config.to_dict() | {"add_time_attn": False}))
    clips = pixel_values[:, None] if kind == "image" else pixel_values
    states, maps = plain_languagebind.whole(weights, config, clips)
    states, scores = states[layer].float(), maps[layer][:, :, 0, 1:].mean(1)
    if keep is not None:
        best = [1 + each.argsort(descending=True)[:keep].sort().values for each in scores]
        states = torch.stack([torch.cat([x[:1], x[index]]) for x, index in zip(states, best, strict=True)])
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    projected = F.gelu(states @ first.weight.T + first.bias) @ second.weight.T + second.bias
    return projected[:, 1:] if kind == "image" else projected


@torch.no_grad()
def logits(model, batch):
    """Logits (B, L, V) of a batch of the processor, by plain towers and a language model of its own."""
    ids = batch["input_ids"]
    embeds = model.get_input_embeddings()(ids).clone()
    for kind, token in (("image", IMAGE_ID), ("video", VIDEO_ID)):
        pixels = batch.get("pixel_values") if kind == "image" else batch.get("pixel_values_videos")
        if pixels is not None:
            embeds[ids == token] = features(model, kind, pixels).flatten(0, 1)
    return language(model)(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits


def batch(processor, frames=FRAMES, texts=ASKED):
    shown = {"videos": [clip(frames)]} if "<video>" in texts[0] else {}
    return processor(images=pictures(1) if len(texts) > 1 else None, text=texts, padding=True, return_tensors="pt", **shown)


def same_weights(model, expected):
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        rows = original.VOCABULARY if "embed_tokens" in name or "lm_head" in name else None
        assert value.shape == state[name].shape
        assert torch.equal(value[:rows], state[name][:rows]), name
