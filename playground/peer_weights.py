"""One LLaVA-1.5 with random weights, written in two layouts: transformers' own, and the one that the authors' code reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, WORDS, BEFORE, PATCHES = 31999, 80, 35, 576
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}
DECODER = {
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "crop_size": 336, "size": 336, "do_center_crop": True}


def write(folder: Path, dtype: torch.dtype, tower_layers: int, decoder_layers: int, prompts: int) -> dict[str, Any]:
    """Write both layouts and `prompts.pt`, pictures of noise with a prompt each; returns what the model is."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(**TOWER, num_hidden_layers=tower_layers)  # type: ignore[arg-type]
    decoder = LlamaConfig(**DECODER, num_hidden_layers=decoder_layers)  # type: ignore[arg-type]
    config = LlavaConfig(vision_config=tower, text_config=decoder, image_token_index=IMAGE)
    model: Any = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    model.save_pretrained(folder / "transformers")
    _write_tower(model, folder / "clip", tower)  # VisPruner knows a tower by "clip" in its name
    _write_decoder(model, folder / "authors", folder / "clip", decoder)
    torch.save([_prompt(seed) for seed in range(prompts)], folder / "prompts.pt")
    return {"tower": tower.to_diff_dict(), "decoder": decoder.to_diff_dict(), "parameters": model.num_parameters()}


def _write_tower(model: Any, folder: Path, config: CLIPVisionConfig) -> None:
    """A CLIP vision model as transformers 4 names its weights, with its processor."""
    weights = {
        f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in model.model.vision_tower.state_dict().items()
    }
    told = {"model_type": "clip_vision_model", **TOWER, "num_hidden_layers": config.num_hidden_layers}
    _save(folder, weights, {**told, "architectures": ["CLIPVisionModel"], "projection_dim": 768})
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))


def _write_decoder(model: Any, folder: Path, tower: Path, config: LlamaConfig) -> None:
    """Projector and language model as LLaVA's own code names them."""
    weights = {f"model.{name}": x for name, x in model.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = model.lm_head.weight
    for place, layer in ((0, "linear_1"), (2, "linear_2")):
        linear = getattr(model.model.multi_modal_projector, layer)
        weights |= {f"model.mm_projector.{place}.weight": linear.weight, f"model.mm_projector.{place}.bias": linear.bias}
    told = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        **DECODER,
        "num_hidden_layers": config.num_hidden_layers,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "mm_vision_tower": str(tower.absolute()),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": TOWER["hidden_size"],
        "use_mm_proj": True,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    _save(folder, weights, told)


def _save(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: x.detach().clone().contiguous() for name, x in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config))


def _prompt(seed: int) -> dict[str, torch.Tensor]:
    """A picture of noise in 80 words, with a placeholder for each patch, and with one for all as the authors have it."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(10, IMAGE, (1, WORDS), generator=generator)
    parts = words[:, :BEFORE], words[:, BEFORE:]
    return {
        "pixels": torch.randn(1, 3, TOWER["image_size"], TOWER["image_size"], generator=generator),  # type: ignore[call-overload]
        "ids": torch.cat((parts[0], torch.full((1, PATCHES), IMAGE), parts[1]), dim=1),
        "authors_ids": torch.cat((parts[0], torch.full((1, 1), -200), parts[1]), dim=1),
    }
