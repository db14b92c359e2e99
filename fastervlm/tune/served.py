"""How `fastervlm serve` serves what a search found, and what it does otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.serving.options import Served

# By the argument of `fastervlm.prune`: the only value that a server has, and why.
_FIXED = {
    "anyres": ("native", "a server lays crops out as the model itself does; tune with --anyres native"),
    "budget": ("crop", "each crop keeps its own tokens there; tune with --budget crop"),
}


def served_lines(model: str, keep: int | float, method: str, layout: Mapping[str, Any], unlike: Sequence[str]) -> list[str]:
    """The line to paste, with what is not as it was in the search, or why there is none.

    Args:
        model: the path.
        keep: visual tokens.
        method: its name.
        layout: the arguments of `fastervlm.prune` for pictures in crops, none for others.
        unlike: what `unlike_server` said.
    """
    newline = layout.get("newline", "all")
    try:
        for name, (served, why) in _FIXED.items():
            if layout.get(name, served) != served:
                raise UserError(f"{name}={layout[name]!r} cannot be served, because {why}.")
        Served(keep, method, newline)
    except UserError as error:
        return [f"fastervlm serve cannot do the same: {error}"]
    other = "" if newline == "all" else f" --newline {newline}"
    return [
        f"    fastervlm serve {shlex.quote(model)} --keep {keep} --method {method}{other}",
        *unlike,
    ]


def unlike_server(subject: Subject, settings: Settings, ignored_turns: int) -> list[str]:
    """What a server does otherwise with pictures and prompts than this search, and how to search as it does, in sentences.

    `ignored_turns` is how many pictures were read as they are stored though a camera marked them as turned.
    """
    found = []
    others = [shape for shape in subject.family.shapes if shape != "pad"]
    pads = getattr(subject.processor.image_processor, "do_pad", None) is True  # as that of a LLaVA in its authors' layout does
    if settings.aspect_ratio(subject) == "pad" and not pads:
        found.append(("does not pad pictures to a square, and this search did", f"--image-aspect-ratio {others[0]}"))
    if ignored_turns:
        found.append(("turns pictures as the camera was held, and this search did not", "--exif upright"))
    if settings.conv_mode not in (None, "chat"):
        found.append(("writes prompts by the model's own template, and this search did not", "--conv-mode chat"))
    return [f"A server {what}; tune with {option} to prove what is served." for what, option in found]
