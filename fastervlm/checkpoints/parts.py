"""Folders that hold a part of a model: an adapter, or a projector alone. They are named, with the way to make them whole."""

from __future__ import annotations

import json
from pathlib import Path

from encoders import UserError

WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
PROJECTOR = "mm_projector.bin"
_OF_AUTHORS = ("non_lora_trainables.bin", PROJECTOR)  # what LLaVA's training writes beside or in the place of an adapter


def refuse_parts(folder: Path) -> None:
    """A `UserError` that says what to merge and how, if a folder holds a part of a model and no whole one."""
    if any((folder / name).is_file() for name in WHOLE):
        return
    if (folder / ADAPTER).is_file():
        raise UserError(f"{folder} holds an adapter (LoRA) and no model; {how_to_merge(folder)}")
    if (folder / PROJECTOR).is_file():
        raise UserError(f"{folder} holds a projector alone ({PROJECTOR}) and no model; {how_to_merge(folder)}")


def how_to_merge(folder: Path) -> str:
    """The rest of a sentence: how the part in a folder becomes a whole model."""
    base = _base(folder)
    first = f"merge it into its base model{f' {base}' if base else ''} first"
    if any((folder / name).is_file() for name in _OF_AUTHORS) or not (folder / ADAPTER).is_file():
        return (
            f"{first}, by LLaVA's scripts/merge_lora_weights.py --model-path {folder} --model-base {base or 'BASE'} "
            "--save-model-path OUT, and give OUT."
        )
    return (
        f"{first}: with PEFT, PeftModel.from_pretrained(model, {str(folder)!r}).merge_and_unload().save_pretrained(OUT), copy "
        "the base model's processor files to OUT, and give OUT."
    )


def _base(folder: Path) -> str | None:
    """The base model that an adapter's config names."""
    try:
        base = json.loads((folder / ADAPTER).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return base if isinstance(base, str) and base.strip() else None
