"""What a checkpoint says of itself, and where and how its weights are to be held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from encoders import UserError
from fastervlm.checkpoints.errors import reason
from fastervlm.checkpoints.hub import refuse_out_of_reach
from fastervlm.checkpoints.parts import refuse_parts
from fastervlm.reporting.files import parse_json, read_file

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_config(name: str) -> dict[str, Any]:
    """What the config.json of a checkpoint says."""
    from transformers.utils import cached_file

    if not name.strip():
        raise UserError("The name of the checkpoint is empty; give a folder, or a name on the hub.")
    if Path(name).is_file():
        raise UserError(f"{name} is a file; give the folder of the checkpoint.")
    if Path(name).is_dir():
        refuse_parts(Path(name))
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"The folder {name} holds no config.json; give the folder of a checkpoint.")
    refuse_out_of_reach(name)
    try:
        file = Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"There is no checkpoint {name!r}: neither a folder with one nor a model of the hub in reach."
        ) from error
    try:
        told = parse_json(read_file(file))
        if not isinstance(told, dict):
            raise ValueError(f"it holds a {type(told).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"The config.json of {name} cannot be read ({reason(error)}); download it again.") from error
    return told


def find_device(device: torch.device | str | None) -> torch.device:
    """The torch device of that name, or the best there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"There is no kind of device called {device!r}; use cpu or cuda.") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for but torch finds no CUDA device here; use --device cpu or install a CUDA build.")
    try:
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"The device {str(device)!r} cannot be used here; use cpu, or a GPU that torch can see.") from error
    return target


def find_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The torch dtype of that name, or the usual one of the device."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]
