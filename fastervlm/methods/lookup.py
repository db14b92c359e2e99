"""Methods by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from encoders import UserError
from fastervlm.methods import METHODS, ClipRelevance, Method


def get_method(method: str | Method, **settings: Any) -> Method:
    """The method of a name in METHODS, with `settings` in place of its defaults; a method itself is passed through.

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
    if method not in METHODS:
        raise UserError(f"There is no method named {method!r}; choose one of {', '.join(METHODS)}.")
    try:
        return replace(METHODS[method], **settings) if settings else METHODS[method]  # type: ignore[type-var]
    except TypeError as error:
        raise UserError(f"The method {method!r} has no setting {', '.join(settings)}.") from error
