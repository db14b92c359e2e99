"""A checkpoint as an engine can read it: in the layout of transformers, into which one of the authors' is converted once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastervlm.checkpoints.config import read_config
from fastervlm.checkpoints.original import convert, is_original


def readable(name: str) -> tuple[str, dict[str, Any]]:
    """A folder or a name that transformers reads, and what its config.json says.

    A checkpoint in the layout of LLaVA's authors is converted at the first call, into a folder of the user's cache.

    Raises:
        UserError: there is no such checkpoint, or it cannot be converted.
    """
    told = read_config(name)
    if not is_original(told):
        return name, told
    target = _place(name, told)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            print(f"{name} is in the layout of its authors; it is converted once, into {target}.", file=sys.stderr)
            convert(name, target)
    return str(target), read_config(str(target))


def _place(name: str, told: dict[str, Any]) -> Path:
    """The folder for the converted checkpoint; another one once its config or the size of a file has changed."""
    folder = Path(name)
    files = sorted((each.name, each.stat().st_size) for each in folder.iterdir() if each.is_file()) if folder.is_dir() else []
    where = str(folder.resolve()) if folder.is_dir() else name
    key = hashlib.sha256(json.dumps([where, told, files], sort_keys=True).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fastervlm" / "converted" / f"{folder.resolve().name if files else folder.name}-{key}"
