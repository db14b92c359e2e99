"""An original checkpoint as a model of transformers and its processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.checkpoints.errors import reason
from fastervlm.checkpoints.models import empty_model
from fastervlm.checkpoints.original.config import CheckpointLayout, build_config, find_layout
from fastervlm.checkpoints.original.languagebind import find_towers
from fastervlm.checkpoints.original.processor import build_processor
from fastervlm.checkpoints.original.tower import Tower, find_tower
from fastervlm.checkpoints.original.weights import Shards, fill, find_folder
from fastervlm.checkpoints.parts import ADAPTER, how_to_merge, refuse_parts


class Found(NamedTuple):
    """A tower of a checkpoint: how its weights' names begin in transformers, and whether the checkpoint holds them."""

    tower: Tower
    begins: str
    inside: bool


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
        vision_tower: folder or hub name of the tower, or a folder that holds the folders of both towers of a Video-LLaVA, if
            they are not where the checkpoint says.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        UserError: files are missing, damaged, or hold more than tensors.
        UserTypeError: the checkpoint is of a kind that is not supported.
    """
    layout = find_layout(name, told)
    shards, towers = _find(name, told, layout, vision_tower)
    tower = towers[-1].tower  # that of clips, whose config tells more where there are two
    processor = build_processor(shards.folder, told, layout, tower)
    tokens = processor.image_token_id, getattr(processor, "video_token_id", None)
    config = build_config(name, told, layout, tower.config, *tokens)
    try:
        model = empty_model(config, dtype)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"The config.json of {name} cannot be used ({reason(error)}); download it again.") from error
    fill(model, name, _renamed(shards, layout, towers, dtype), told["vocab_size"], dtype, device)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, token, getattr(processor.tokenizer, token))
    return model.to(device).eval(), processor


def tower_files(name: str, told: dict[str, Any]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The weight files and the small files that `read` reads of the towers, as far as they lie outside the checkpoint."""
    _, towers = _find(name, told, find_layout(name, told), None)
    outside = [each for each in towers if each.tower.where is not None]
    names = ("config.json", "preprocessor_config.json", "processor_config.json")
    small = [each.tower.folder / file for each in outside for file in names]
    weights = [file for each in outside if not each.inside for file in Shards.find(each.tower.folder).files]
    return tuple(weights), tuple(file for file in small if file.is_file())


def _find(
    name: str, told: dict[str, Any], layout: CheckpointLayout, vision_tower: str | Path | None
) -> tuple[Shards, list[Found]]:
    """The weights of a checkpoint, and its towers."""
    folder = find_folder(name)
    refuse_parts(folder)
    if (folder / ADAPTER).is_file():
        raise UserError(f"{name} holds an adapter, which is not applied in its authors' layout; {how_to_merge(folder)}")
    shards = Shards.find(folder)
    names = [layout.rename(key) for key in shards.names()]
    held = {key: {name for name in names if name.startswith(begins)} for key, begins in layout.towers}
    if len(held) == 1:
        (key,) = held
        towers: dict[str, Tower] = {key: find_tower(folder, told, bool(held[key]), vision_tower)}
    else:
        towers = {**find_towers(folder, told, held, vision_tower)}
    return shards, [Found(towers[key], begins, bool(held[key])) for key, begins in layout.towers]


def _renamed(
    shards: Shards, layout: CheckpointLayout, towers: list[Found], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """All weights by the names of transformers, those of towers stored elsewhere first."""
    for tower, begins, inside in towers:
        if not inside:
            for name, tensor in tower.weights(dtype):
                yield begins + name, tensor
    for name, tensor in shards:
        yield layout.rename(name), tensor
