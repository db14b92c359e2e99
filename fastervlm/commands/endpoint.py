"""A server that answers in place of a model in this process: the options of commands that can ask one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoders.errors import UserError
from fastervlm.commands.numbers import number

if TYPE_CHECKING:
    from fastervlm.eval.api_engine import ApiEngine

ApiBase = Annotated[
    str | None,
    typer.Option(
        help="Ask an OpenAI-compatible server instead, such as http://localhost:8000/v1; --model is then the model's name "
        "there, --workers how many questions are asked at a time (8 if left out), and the key is read from OPENAI_API_KEY."
    ),
]

_USUAL = {"engine": "local", "anyres": "native", "newline": "kept", "budget": "crop"}  # what is there where nothing is given


def api_engine(api_base: str, model: str, workers: int | None, kept: str | None, others: Mapping[str, Any]) -> ApiEngine:
    """The engine that asks the server.

    Args:
        api_base: where it is.
        model: the model's name there.
        workers: how many questions are asked at a time.
        kept: visual tokens as typed, which are asked of the server, if any.
        others: options that only a model in this process heeds, as given.

    Raises:
        UserError: one of those was given, or the address cannot be one.
    """
    from fastervlm.eval.api_engine import ApiEngine
    from fastervlm.eval.chat import Chat
    from fastervlm.reporting.progress import console
    from fastervlm.selection.budget import TokenBudget

    if given := [option for option, value in others.items() if value not in (None, _USUAL.get(option))]:
        raise UserError(f"--{given[0]} is for a model in this process; the server at --api-base has its own; leave it out.")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1.")
    tokens = None if kept is None else number(kept)
    if tokens is not None:
        TokenBudget(tokens)  # which refuses what is no count or fraction
    key = os.environ.get("OPENAI_API_KEY", "").strip() or None
    return ApiEngine(Chat(api_base, model, key, timeout=600.0, say=console.print), workers or 8, tokens)
