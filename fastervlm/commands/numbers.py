"""Numbers as people type them. Python's own reading is too kind: it takes `1_0` for 10."""

from __future__ import annotations

import re
from typing import Any

import typer

from encoders.errors import UserError

_MOST = 2**31 - 1
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*|[+-]?(nan|inf)", re.IGNORECASE)


def whole_number(typed: object) -> int:
    """The value of an option that is a whole number; for typer, which also hands over defaults."""
    if not _WHOLE.fullmatch(str(typed)):
        raise typer.BadParameter(f"{str(typed)!r} is no whole number; give digits alone, such as 10.")
    if abs(int(str(typed))) > _MOST:
        raise typer.BadParameter(f"{typed} is too large; give a number of at most {_MOST}.")
    return int(str(typed))


def decimal_number(typed: object) -> float:
    """The value of an option that is a number; for typer, which also hands over defaults."""
    if not _DECIMAL.fullmatch(str(typed)):
        raise typer.BadParameter(f"{str(typed)!r} is no number; give one such as 0.2.")
    return float(str(typed))


def whole(least: int, most: int | None = None) -> dict[str, Any]:
    """What makes an option of typer a whole number in a range."""

    def parser(typed: object) -> int:
        value = whole_number(typed)
        if value < least or (most is not None and value > most):
            up_to = "" if most is None else f" and at most {most}"
            raise typer.BadParameter(f"{value} cannot be used; it must be at least {least}{up_to}.")
        return value

    return {"parser": parser, "metavar": "INTEGER"}


# What makes an option of typer a whole number, or one with a point.
WHOLE: dict[str, Any] = {"parser": whole_number, "metavar": "INTEGER"}
DECIMAL: dict[str, Any] = {"parser": decimal_number, "metavar": "FLOAT"}


def number(text: str, option: str = "--visual-token-num") -> int | float:
    """A token budget as typed: a count, or a number with a point."""
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    raise UserError(f"{option} is {text!r}; give a count such as 58 or a fraction such as 0.1.")


def kept(text: str, option: str = "--visual-token-num") -> Any:
    """What is kept, as typed: a count, a number with a point, or at-most-COUNT or at-most-COUNT-KEEP as an `AtMost`."""
    if not text.strip().startswith("at-most"):
        return number(text, option)

    from fastervlm.selection.budget import AtMost

    return AtMost.read(text)


def kept_of(text: str) -> list[Any]:
    """The same of several, separated by commas."""
    return [kept(part) for part in text.split(",")]


def budgets_of(text: str) -> list[int | float]:
    """Token budgets as typed, separated by commas."""
    return [number(part) for part in text.split(",")]


def whole_numbers(option: str, text: str, least: int = 1) -> list[int]:
    """The values of an option as typed, separated by commas; they must be at least `least`."""
    parts = text.split(",")
    if not all(map(_WHOLE.fullmatch, parts)) or min(map(int, parts)) < least:
        example = ",".join(map(str, (least, least + 7)))
        raise UserError(
            f"--{option} is {text!r}; give whole numbers of at least {least} separated by commas, such as {example}."
        )
    if max(map(int, parts)) > _MOST:
        raise UserError(f"--{option} is {text!r}; give numbers of at most {_MOST}.")
    return list(map(int, parts))
