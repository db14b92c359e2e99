"""Files that are written whole or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_json(path: Path, data: Any) -> None:
    """Indented JSON, written whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A file, whole or not at all."""
    with whole(path) as file:
        file.write(content)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Named arrays as .npz, whole or not at all."""
    with whole(path) as file:
        np.savez(file, **arrays)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is written aside, flushed to disk and then renamed; what fails leaves the one that was there."""
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over one file's bytes, or over the names and hashes of several files."""
    digests = [(path.name, _hash_file(path)) for path in files]
    return digests[0][1] if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
