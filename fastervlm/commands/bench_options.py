"""Options that the uses of `fastervlm bench` have in common."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.numbers import WHOLE

Layer = Annotated[int, typer.Option(help="The first layer that FastV prunes, counted from 0.", **WHOLE)]
Repeats = Annotated[int, typer.Option(help="How often each is timed, in turns, after a round that warms up.", **WHOLE)]
NewTokens = Annotated[int, typer.Option(help="Length of each timed answer.", **WHOLE)]
In4Bit = Annotated[bool, typer.Option("--load-in-4bit", help="Hold the language model's weights in 4 bits.")]
In8Bit = Annotated[bool, typer.Option("--load-in-8bit", help="Hold the language model's weights in 8 bits.")]


def quantized(four: bool, eight: bool) -> Literal["4bit", "8bit"] | None:
    """How the weights are held, by the two flags."""
    if four and eight:
        raise UserError("--load-in-4bit and --load-in-8bit exclude each other; give one of them.")
    return "4bit" if four else "8bit" if eight else None
