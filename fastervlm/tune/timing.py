"""Times to the first token of a search: those of full batches alone, and of one batch size on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.eval.answers import Entry
from fastervlm.reporting.files import parse_json, read_file, write_json
from fastervlm.reporting.provenance import machine

FILE = "timing.json"


def hold_to(folder: Path, batch_size: int, device: torch.device, known: Iterable[Entry]) -> None:
    """Write down what the times of a folder are of.

    Args:
        folder: that of a search.
        batch_size: questions of a batch.
        device: where they are answered.
        known: what was answered there before.

    Raises:
        UserError: it holds times of another batch size or device, or nobody knows of which.
    """
    where = machine(device)
    name = where["device"] if device.type == "cuda" else f"{where['device']} ({where['processor']})"
    now = {"batch_size": batch_size, "device": name}
    if not any(entry.first_token for entry in known):
        write_json(folder / FILE, now)
        return
    there = _told(folder / FILE)
    if there != now:
        raise UserError(
            f"{folder} holds times of {_named(there)}, and those of this search are of {_named(now)}; give another --out-dir."
        )


def _told(path: Path) -> Any:
    try:
        return parse_json(read_file(path))
    except ValueError:  # UserError is one
        return None


def _named(told: Any) -> str:
    try:
        return f"batches of {told['batch_size']} on {told['device']}"
    except (TypeError, KeyError):
        return f"batches of which no {FILE} tells the size and the device"


def first_token(entries: Iterable[Entry], batch_size: int, largest: int) -> float:
    """The median time to the first token of the fullest batches; nan if none was full.

    A batch is full if no other picture finds room in it, which leaves it more than half full: `largest` is how many questions
    a picture has at most, and these stay together. Questions that failed leave a batch smaller. All questions of a batch have
    its time, and others have another.
    """
    entries = list(entries)
    failed = sum(entry.failure is not None for entry in entries)
    counts = Counter(entry.first_token for entry in entries if entry.first_token)
    fullest = max(counts.values(), default=0)
    if not fullest or fullest + failed + min(largest, batch_size / 2) <= batch_size:
        return float("nan")
    return median(seconds for seconds, count in counts.items() if seconds and count == fullest)
