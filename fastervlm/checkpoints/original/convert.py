"""Write an original checkpoint in the layout of transformers, once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from encoders import UserError
from fastervlm.checkpoints.config import find_dtype, read_config
from fastervlm.checkpoints.errors import reason
from fastervlm.checkpoints.original.config import is_original
from fastervlm.checkpoints.original.read import read


def convert(
    source: str | Path, target: str | Path, *, dtype: torch.dtype | str | None = None, vision_tower: str | Path | None = None
) -> Path:
    """Write the checkpoint `source` into the folder `target`, whole or not at all.

    Args:
        source: a folder in the layout of LLaVA's authors, or its name on the hub.
        target: a folder that is not there yet, or is empty.
        dtype: of the weights; each as it is stored if left out.
        vision_tower: folder or hub name of the vision tower, if it is not where the checkpoint says; see `fastervlm.load`.

    Returns:
        The folder, which transformers' `from_pretrained` reads; a Video-LLaVA that attends over time, `fastervlm.load` alone.

    Raises:
        UserError: as `fastervlm.load` does; or `target` cannot be written.
    """
    cpu = torch.device("cpu")
    kind = None if dtype is None else find_dtype(dtype, cpu)
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is already there; give a folder that is not there yet, or an empty one.")
    told = read_config(str(source))
    if not is_original(told):
        raise UserError(f"{source} is no checkpoint in the layout of LLaVA's authors; there is nothing to convert.")
    model, processor = read(str(source), told, dtype=kind, device=cpu, vision_tower=vision_tower)
    try:
        _write(target, model, processor)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written ({reason(error)}); make room for it, or give another folder.") from error
    return target


def _write(target: Path, model: Any, processor: Any) -> None:
    """Into a folder beside the target, which then takes its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
        made = Path(aside) / "made"
        model.save_pretrained(made)
        processor.save_pretrained(made)
        if target.is_dir():
            target.rmdir()
        os.replace(made, target)
