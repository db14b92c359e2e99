"""Files that are read safely, written whole or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from encoders.errors import UserError


def is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device, the reading of which may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def read_file(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, only the first `most` if that is no negative number.

    Raises:
        UserError: it cannot be read, or is a pipe or a device.
    """
    if is_special(path):
        raise UserError(f"{path} is a pipe or a device; give a file, since it is read more than once.")
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def parse_json(text: str | bytes) -> Any:
    """What JSON says; a `ValueError` if it is none, or nested so deeply that Python does not follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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
    """A file to write that is written aside, flushed to disk and then renamed; what fails leaves the one that was there.

    Raises:
        UserError: it cannot be written, for example since the disk is full.
    """
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a file that cannot be written."""
    full = "; make room and give the same command again, nothing is lost" if error.errno in (ENOSPC, EDQUOT) else ""
    return UserError(f"{path} cannot be written: {error.strerror or error}{full}.")


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
