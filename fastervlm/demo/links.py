"""Addresses of the page that bring its settings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from fastervlm.demo.answers import Ask
from fastervlm.demo.engine import Engine
from fastervlm.demo.examples import Example
from fastervlm.demo.parts import LONGEST_ANSWER, LONGEST_QUESTION
from fastervlm.methods import METHODS


def link_to(asked: Ask, examples: Sequence[Example]) -> str:
    """The address with these settings; it names a picture of the examples, and none that a user brought."""
    told: dict[str, Any] = {"picture": _name(asked.picture, examples), "question": asked.question, "keep": asked.keep}
    told |= {"method": asked.method, "beside": asked.beside or "", "short": int(asked.short), "longest": asked.max_new_tokens}
    return f"?{urlencode(told if asked.layer is None else told | {'layer': asked.layer})}"


def restored(told: Mapping[str, str], engine: Engine, examples: Sequence[Example]) -> tuple[Any, ...]:
    """For picture and settings what an address tells of them; what it does not tell, or what is not known here, stays.

    An address tells all in its query. One without a number of tokens to keep is none of `link_to`, and tells nothing.
    """
    readers = _readers(engine, {Path(file).stem: file for file, _ in examples})
    if "keep" not in told:
        return (gr.skip(),) * len(readers)
    values, wrong = [], []
    for name, read in readers.items():
        try:
            values.append(read(told[name]) if name in told else gr.skip())
        except (KeyError, ValueError):
            values.append(gr.skip())
            wrong.append(name)
    if wrong:
        gr.Warning(f"The link has a {' and a '.join(wrong)} that is not known here; check the settings.")
    return tuple(values)


def _readers(engine: Engine, pictures: Mapping[str, str]) -> dict[str, Callable[[str], Any]]:
    """How each part of the page reads its value, in their order."""
    methods = {name: name for name in METHODS}
    return {
        "picture": lambda text: pictures[text] if text else None,
        "question": lambda text: text[:LONGEST_QUESTION],
        "keep": lambda text: _whole(text, 1, engine.tokens),
        "method": lambda text: methods[text],
        "beside": lambda text: methods[text] if text else "",
        "layer": lambda text: gr.update(value=_whole(text, 0, engine.layers - 1), visible=True),
        "short": lambda text: bool(_whole(text, 0, 1)),
        "longest": lambda text: _whole(text, 1, LONGEST_ANSWER),
    }


def _whole(text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise ValueError
    return int(text)


def _name(picture: Path, examples: Sequence[Example]) -> str:
    """Of the example that a file is, or is a copy of; empty if it is none."""
    same = (Path(file) for file, _ in examples if Path(file).name == picture.name)
    return next((file.stem for file in same if file.read_bytes() == picture.read_bytes()), "")
