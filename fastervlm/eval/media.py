"""What the files of pictures and clips held when they were asked about, so that others of the same name are not taken for them.

A print is the size of a file and a hash (BLAKE2b) of its first 16 MiB, "SIZE:HASH"; of several files all, joined by commas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from encoders.errors import UserError
from fastervlm.eval.task import Question

HEAD = 1 << 24  # bytes
SAMPLE = 32  # files whose content counts; of the others the size


def file_prints(questions: Sequence[Question]) -> dict[int, str]:
    """The print of each question's pictures or clip, by line; none where one is no file of its own, or cannot be read."""
    files = _files(questions)
    found = {path: _print(path) for paths in files.values() for path in paths}
    return {line: each for line, paths in files.items() if (each := _joined([found[path] for path in paths])) is not None}


def media_sha256(prints: Mapping[int, str]) -> str | None:
    """One hash over the sizes of all files, by line, and the content of some; None without files."""
    if not prints:
        return None
    sizes = {line: ",".join(each.partition(":")[0] for each in prints[line].split(",")) for line in sorted(prints)}
    return hashlib.sha256(repr((sizes, {line: prints[line] for line in _sample(prints)})).encode()).hexdigest()


def refuse_other_media(path: Path, questions: Sequence[Question], recorded: str | None) -> None:
    """A `UserError` if the files of these questions are not those of the hash in a run's file at `path`.

    Nothing can be said, and nothing is refused, without a hash or where a file is gone.
    """
    files = _files(questions)
    sample = set(_sample(files))
    prints = {line: _joined([(_print if line in sample else _size)(file) for file in paths]) for line, paths in files.items()}
    known = {line: each for line, each in prints.items() if each is not None}
    if recorded is not None and len(known) == len(prints) and media_sha256(known) != recorded:
        raise UserError(
            f"The pictures or clips are not those that the answers in {path} are about; put those back, "
            "write the answers elsewhere, or remove that file."
        )


def _files(questions: Sequence[Question]) -> dict[int, list[Path]]:
    """The files of each question whose pictures or clip are such, by line."""
    found = {question.line: [each for each in question.pictures if isinstance(each, Path)] for question in questions}
    return {question.line: found[question.line] for question in questions if isinstance(question.image, Path)}


def _joined(prints: Sequence[str | None]) -> str | None:
    """That of several files; None where one is not known."""
    known = [each for each in prints if each is not None]
    return ",".join(known) if len(known) == len(prints) else None


def _sample(lines: Mapping[int, object]) -> list[int]:
    """Evenly spaced lines, the first and the last among them."""
    ordered = sorted(lines)
    count = min(SAMPLE, len(ordered))
    return [ordered[place * (len(ordered) - 1) // max(1, count - 1)] for place in range(count)]


def _size(path: Path) -> str | None:
    try:
        return f"{path.stat().st_size}:" if path.is_file() else None
    except (OSError, ValueError):
        return None


def _print(path: Path) -> str | None:
    size = _size(path)
    if size is None:
        return None
    try:
        with path.open("rb") as file:
            return size + hashlib.blake2b(file.read(HEAD), digest_size=8).hexdigest()
    except OSError:
        return None
