"""Tiny checkpoints in the layout that LLaVA's authors publish, written from models of transformers, weight by weight; and
what they are asked."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from fastervlm.checkpoints.templates import VICUNA_V1
from fastervlm.eval.subject import Subject
from tests.support.plain import pictures

IMAGE, PATCH, VOCABULARY = 32, 8, 400
PATCHES = (IMAGE // PATCH) ** 2
# (height, width), as transformers has it; not the same set the other way round.
PINPOINTS = [[32, 64], [64, 64], [96, 32]]
TEXT = """A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and
polite answers to the user's questions. USER: What is shown in the picture? ASSISTANT: A dog and a cat. How many are there, and
of which colour? the number is four hello world"""
WAYS = [
    ("llava", "bin", False),
    ("llava", "safetensors", True),
    ("llava_next", "bin", True),
    ("llava_next", "safetensors", False),
]
PROMPTS = [VICUNA_V1.replace("{text}", "What is shown?"), "USER: <image>\nHow many are there, and of which colour? ASSISTANT:"]


@cache
def sentences(folder: Path) -> bytes:
    """A tokenizer.model with the settings of Llama's: byte pairs, bytes for what is unknown, nothing normalised."""
    corpus, prefix = folder / "corpus.txt", folder / "tiny"
    corpus.write_text("\n".join(TEXT.replace("\n", " ").split(". ") * 3))
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def stock(kind="llava", seed=0) -> Any:
    """A random model of transformers whose last row of vocabulary is the one for pictures."""
    torch.manual_seed(seed)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    settings: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(**small, num_hidden_layers=3, image_size=IMAGE, patch_size=PATCH),
        "text_config": LlamaConfig(
            **small,
            num_hidden_layers=2,
            num_key_value_heads=1,
            vocab_size=VOCABULARY + 1,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            rms_norm_eps=1e-5,
            pad_token_id=0,
        ),
        "image_token_index": VOCABULARY,
        "image_seq_length": PATCHES,
        "vision_feature_layer": -2,
    }
    if kind == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    else:
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**settings, image_grid_pinpoints=PINPOINTS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def told(model, tower) -> dict[str, Any]:
    """What LLaVA's config.json says about such a model."""
    text = model.config.text_config
    look: dict[str, Any] = {"image_aspect_ratio": "pad", "image_grid_pinpoints": None, "mm_patch_merge_type": "flat"}
    if isinstance(model, LlavaNextForConditionalGeneration):
        swapped = [[width, height] for height, width in PINPOINTS]
        look = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": swapped, "mm_patch_merge_type": "spatial_unpad"}
    return {
        "_name_or_path": "vicuna",
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_length": 4096,
        "max_position_embeddings": text.max_position_embeddings,
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": VOCABULARY,
        **look,
    }


def state(model, inside: bool) -> dict[str, torch.Tensor]:
    """The weights by LLaVA's names, and the tables that older versions of transformers stored with them."""
    kept = {}
    for part, layer in (("0", model.model.multi_modal_projector.linear_1), ("2", model.model.multi_modal_projector.linear_2)):
        kept[f"model.mm_projector.{part}.weight"], kept[f"model.mm_projector.{part}.bias"] = layer.weight, layer.bias
    language = model.model.language_model
    kept["model.embed_tokens.weight"] = language.embed_tokens.weight[:VOCABULARY]
    kept["lm_head.weight"] = model.lm_head.weight[:VOCABULARY]
    kept["model.norm.weight"] = language.norm.weight
    for i, layer in enumerate(language.layers):
        kept |= {f"model.layers.{i}.{name}": value for name, value in layer.state_dict().items()}
        kept[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.full((8,), 7.0)
    if hasattr(model.model, "image_newline"):
        kept["model.image_newline"] = model.model.image_newline
    if inside:
        kept |= {f"model.vision_tower.vision_tower.{name}": value for name, value in clip(model).items()}
    return {name: value.detach().clone().contiguous() for name, value in kept.items()}


def clip(model) -> dict[str, torch.Tensor]:
    """The tower's weights as CLIP was published."""
    return {f"vision_model.{name}": value for name, value in model.model.vision_tower.state_dict().items()}


def write_tower(model, folder: Path, weights=True) -> None:
    """A whole CLIP, text side and all, as its authors publish it; or its config alone."""
    folder.mkdir(parents=True)
    vision = model.config.vision_config.to_dict()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 512, "vision_config": vision}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}))
    if weights:
        more = {"logit_scale": torch.zeros(()), "text_model.final_layer_norm.weight": torch.zeros(4)}
        table = {"vision_model.embeddings.position_ids": torch.arange(PATCHES + 1)[None]}
        torch.save(clip(model) | more | table, folder / "pytorch_model.bin")


def write_shards(tensors: dict[str, torch.Tensor], folder: Path, kind: str, count=2) -> None:
    """Split the weights over files, with an index; one file bears no number and has none."""
    ending, stem = {"bin": (".bin", "pytorch_model"), "safetensors": (".safetensors", "model")}[kind]
    names = sorted(tensors)
    weight_map = {}
    for i in range(count):
        part = {name: tensors[name] for name in names[i::count]}
        file = f"{stem}-{i + 1:05}-of-{count:05}{ending}" if count > 1 else stem + ending
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if count > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{stem}{ending}.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, scratch: Path) -> None:
    """The files that are published: a tokenizer.model and no tokenizer.json."""
    (folder / "tokenizer.model").write_bytes(sentences(scratch))
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {name: token | {"content": content} for name, content in named.items()}
    more = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "model_max_length": 2048, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | more | {"padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"})
    )


def write(model, folder: Path, scratch: Path, *, files="bin", inside=False, count=2) -> Path:
    """A whole checkpoint in `folder`, and its tower in the folder `tower` beside it."""
    folder.mkdir(parents=True)
    write_tower(model, folder.parent / "tower", weights=not inside)
    (folder / "config.json").write_text(json.dumps(told(model, "openai/tower")))
    write_shards(state(model, inside), folder, files, count)
    write_tokenizer(folder, scratch)
    return folder


def asked(processor):
    return processor(images=pictures(2), text=PROMPTS, padding=True, return_tensors="pt")


def hashes(folder):
    subject = Subject(str(folder), device="cpu")
    return subject.weights_sha256, subject.processor_sha256
