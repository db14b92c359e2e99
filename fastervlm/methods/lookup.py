"""Methods by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from encoders import UserError
from fastervlm.methods import METHODS, ClipRelevance, Method
from fastervlm.methods.with_fastv import WithFastV

ON_TOP = "fastv"


def is_name(text: str) -> bool:
    """Whether a method has that name."""
    name, plus, inside = text.partition("+")
    return name in METHODS and (not plus or inside == ON_TOP)


def name_of(method: Method) -> str | None:
    """The name of a method as `get_method` takes it; None for one with settings of its own, or another's."""
    if isinstance(method, WithFastV):
        first = name_of(method.first)
        return f"{first}+{ON_TOP}" if first and method == WithFastV(method.first) else None
    return next((name for name, known in METHODS.items() if known == method), None)


def first_of(method: Method) -> Method:
    """The method that chooses first: the one in front of the language model under METHOD+fastv, else the method itself."""
    return method.first if isinstance(method, WithFastV) else method


def draws(method: Method) -> bool:
    """Whether it draws at random, by a `seed`."""
    return hasattr(first_of(method), "seed")


def get_method(method: str | Method, **settings: Any) -> Method:
    """The method of a name in METHODS, with `settings` in place of its defaults; a method itself is passed through.

    METHOD+fastv is that method with FastV on top, see `WithFastV`; the settings are then the method's.

    Raises:
        UserError: no method has that name, or it has no such setting.
    """
    if not isinstance(method, str):
        if isinstance(method, type):
            raise UserError(f"method={method.__name__} is a class; make one of it: {method.__name__}().")
        if isinstance(method, ClipRelevance):
            raise UserError("ClipRelevance is no method by itself; give CDPruner(relevance=ClipRelevance(clip, tokenizer)).")
        if not callable(method):
            raise UserError(f"method={method!r} is neither a name nor a method; the names are {', '.join(METHODS)}.")
        return method
    name, _, inside = method.partition("+")
    if inside == ON_TOP and name in METHODS:
        return WithFastV(get_method(name, **settings))
    if method not in METHODS:
        raise UserError(f"There is no method named {method!r}; choose one of {', '.join(METHODS)}, or METHOD+{ON_TOP}.")
    try:
        return replace(METHODS[method], **settings) if settings else METHODS[method]  # type: ignore[type-var]
    except TypeError as error:
        raise UserError(f"The method {method!r} has no setting {', '.join(settings)}.") from error
