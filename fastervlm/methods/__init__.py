"""Methods that choose which visual tokens to keep, before the language model sees any or inside it.

A method is a small frozen dataclass, called with the scored patches and the number to keep; one that prunes inside the
language model is an `InLLM` instead. To add one, write it in a file of its own and name it in METHODS.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from encoders import UserError
from fastervlm.inllm import FastV, InLLM, Simignore
from fastervlm.methods.baselines import RandomTokens, UniformGrid
from fastervlm.methods.cdpruner import CDPruner
from fastervlm.methods.clip_relevance import ClipRelevance
from fastervlm.methods.cls_attention import ClsAttention
from fastervlm.methods.dart import DART
from fastervlm.methods.divprune import DivPrune
from fastervlm.methods.prumerge import PruMerge
from fastervlm.methods.visionzip import VisionZip
from fastervlm.methods.vispruner import VisPruner
from fastervlm.selection.method import Method

__all__ = [
    "DART",
    "METHODS",
    "CDPruner",
    "ClipRelevance",
    "ClsAttention",
    "DivPrune",
    "FastV",
    "InLLM",
    "Method",
    "PruMerge",
    "RandomTokens",
    "Simignore",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
    "get_method",
]

METHODS: dict[str, Method] = {
    "cls": ClsAttention(),
    "cls-lowest": ClsAttention(lowest=True),
    "random": RandomTokens(),
    "grid": UniformGrid(),
    "vispruner": VisPruner(),
    "visionzip": VisionZip(),
    "divprune": DivPrune(),
    "cdpruner": CDPruner(),
    "prumerge": PruMerge(),
    "dart": DART(),
    "fastv": FastV(),
    "simignore": Simignore(),
}


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
