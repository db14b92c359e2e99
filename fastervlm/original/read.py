"""An original checkpoint as a model of transformers and its processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.original.config import Layout, build_config, find_layout
from fastervlm.original.processor import build_processor
from fastervlm.original.tower import Tower, find_tower
from fastervlm.original.weights import Shards, empty_model, fill
from fastervlm.unreadable import reason

_FILES = ["*.json", "*.model", "*.safetensors", "*.bin"]


def read(
    name: str,
    told: dict[str, Any],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    vision_tower: str | Path | None = None,
) -> tuple[Any, Any]:
    """Read the checkpoint `name`, whose config.json says `told`; the memory it takes is the model's and one shard's.

    Args:
        name: a folder, or a name on the hub.
        told: what the checkpoint's config.json says.
        dtype: of the weights; as stored if None.
        device: where the weights go.
        vision_tower: folder or hub name of the tower, if it is not where `mm_vision_tower` says.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        UserError: files are missing, damaged, or hold more than tensors.
        UserTypeError: the checkpoint is of a kind that is not supported.
    """
    layout = find_layout(name, told)
    shards, tower, inside = _find(name, told, layout, vision_tower)
    processor = build_processor(shards.folder, told, layout, tower)
    config = build_config(name, told, layout, tower.config, processor.image_token_id)
    try:
        model = empty_model(config, dtype)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"The config.json of {name} cannot be used ({reason(error)}); download it again.") from error
    fill(model, name, _renamed(shards, layout, None if inside else tower, dtype), told["vocab_size"], dtype, device)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, token, getattr(processor.tokenizer, token))
    return model.to(device).eval(), processor


def tower_files(name: str, told: dict[str, Any]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The weight files and the small files that `read` reads of the tower, as far as they lie outside the checkpoint."""
    _, tower, inside = _find(name, told, find_layout(name, told), None)
    if tower.where is None:
        return (), ()
    small = (tower.folder / file for file in ("config.json", "preprocessor_config.json", "processor_config.json"))
    return () if inside else Shards.find(tower.folder).files, tuple(file for file in small if file.is_file())


def _find(name: str, told: dict[str, Any], layout: Layout, vision_tower: str | Path | None) -> tuple[Shards, Tower, bool]:
    """The weights of a checkpoint, its tower, and whether they hold that of the tower."""
    folder = _folder(name)
    shards = Shards.find(folder)
    inside = any((layout.rename(key) or "").startswith(layout.tower) for key in shards.names())
    return shards, find_tower(folder, told, inside, vision_tower), inside


def _renamed(shards: Shards, layout: Layout, tower: Tower | None, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """All weights by the names of transformers, those of a tower stored elsewhere first."""
    if tower:
        for name, tensor in tower.weights(dtype):
            yield layout.tower + name, tensor
    for name, tensor in shards:
        if new := layout.rename(name):
            yield new, tensor


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise UserError(f"The files of {name} cannot be downloaded ({reason(error)}); try again.") from error
