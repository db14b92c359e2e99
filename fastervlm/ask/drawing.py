"""What was kept of the pictures of a question, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import fastervlm
from encoders.errors import UserError
from fastervlm.ask.asked import Asked, Pruner, Reply
from fastervlm.eval.overlay import patches_of
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import whole

_GAP = 14  # pixels


def check_overlay(path: Path | None, pruner: Pruner, pictures: int) -> None:
    """Refuse, before the model is loaded, a place that cannot be written, and what could not be drawn.

    Raises:
        UserError: either of the two.
    """
    from fastervlm.eval.answers import writable_file

    if path and pruner.in_llm and pictures > 1:
        raise UserError(
            "--overlay draws one picture where the language model is pruned inside; ask about one, or leave it out."
        )
    writable_file("--overlay", path, ".png")


def _by_picture(traces: Sequence[Any]) -> list[list[Any]]:
    """The traces of each picture: one, or those of its tiles."""
    found, first = list[list[Any]](), 0
    while first < len(traces):
        tile = getattr(traces[first], "tile", None)
        found.append(list(traces[first : first + (tile[1] if tile else 1)]))
        first += len(found[-1])
    return found


def save_overlay(subject: Subject, asked: Asked, pruner: Pruner, reply: Reply, path: Path) -> None:
    """Save what was kept of each picture, one below the other.

    Raises:
        UserError: nothing tells where in the pictures the kept tokens lie.
    """
    traces = [patches_of(reply.trace[0], asked.pictures[0], subject)] if pruner.in_llm else _by_picture(reply.trace)
    if len(traces) != len(asked.pictures):
        raise UserError(f"A {type(asked.model).__name__} does not tell which part of a picture it kept; leave --overlay out.")
    parts = [fastervlm.overlay(picture, trace) for picture, trace in zip(asked.pictures, traces, strict=True)]
    size = max(part.width for part in parts), sum(part.height for part in parts) + _GAP * (len(parts) - 1)
    sheet, top = Image.new("RGB", size, "white"), 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + _GAP
    with whole(path) as file:
        sheet.save(file, "PNG")
