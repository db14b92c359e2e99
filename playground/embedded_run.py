"""`fastervlm eval textvqa` with the tiny model, in a process of its own as a user runs it; and a look at its processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastervlm.embedded import MODEL, embedded_benchmark

PAGE = os.sysconf("SC_PAGE_SIZE")


def command(answers: Path, *options: str, question_file: Path | None = None) -> list[str]:
    """The command for a run on the mini benchmark, or on other questions about its pictures; with what `options` say."""
    questions, images, _ = embedded_benchmark()
    files = ["--question-file", str(question_file or questions), "--image-folder", str(images), "--answers-file", str(answers)]
    return [sys.executable, "-m", "fastervlm.cli", "eval", "textvqa", "--model", str(MODEL), *files, *options]


def engine(workers: int) -> list[str]:
    """The options for so many workers by Ray, none for an answer in the process itself."""
    return ["--engine", "ray", "--workers", str(workers)] if workers else []


def resident_bytes(process: int) -> int:
    """The memory that a process holds, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def descendants(process: int) -> Iterator[int]:
    """The processes that a process started, and theirs."""
    try:
        children = [
            int(child) for task in Path(f"/proc/{process}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield child
        yield from descendants(child)


def is_worker(process: int) -> bool:
    """Whether a process is a worker of the Ray engine."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::Worker")
    except OSError:
        return False


def written_lines(path: Path) -> int:
    """Whole lines in a file so far, 0 if it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait(reached: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it takes longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds:.0f} seconds it is not so")
        time.sleep(0.02)
