"""Graphs of torch.compile, with the weights as constants on a CPU, and how long they took to make."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from encoders.errors import UserNote

_LOCK = threading.Lock()
_STAMPS = itertools.count(1)  # of the process, so that no two states of weights share a graph
_before: list[dict[str, Any]] = []  # what torch's settings were, once for each that is inside `weights_as_constants`


class Graphs:
    """A function as torch compiles it: a graph for each new kind of input, the function itself past torch's limit of graphs.

    On a CPU the weights become constants of the graph and are packed once for its matrix products; a copy of them is held so.
    Where weights were changed since, the graphs are made anew.

    Attributes:
        seconds: what making graphs has taken so far, the calls that needed them included.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module, **options: Any) -> None:
        self.function = function
        self.module = module
        self.seconds = 0.0
        self._compiled = torch.compile(_stamped(function), **options)
        self._weights: list[tuple[int, int]] | None = None
        self._stamp = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`function` by its graph."""
        if torch.compiler.is_compiling():  # a part of somebody else's graph
            return self.function(*args, **kwargs)
        from torch._dynamo.exc import FailOnRecompileLimitHit  # seconds to import, needless to who compiles nothing
        from torch._dynamo.utils import counters

        made, start = counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            if not self._on_cpu or torch.is_grad_enabled():
                return self._compiled("", *args, **kwargs)
            with weights_as_constants():
                return self._compiled(self._version(), *args, **kwargs)
        except FailOnRecompileLimitHit:
            note = "Torch keeps no graphs for more shapes than these; calls of others run uncompiled."
            warnings.warn(note, UserNote, stacklevel=2)
            return self.function(*args, **kwargs)
        finally:
            if counters["stats"]["unique_graphs"] != made:
                self.seconds += time.perf_counter() - start

    @property
    def _on_cpu(self) -> bool:
        return next(self.module.parameters()).device.type == "cpu"

    def _version(self) -> str:
        """Another text whenever weights were changed; graphs are kept by it."""
        tensors = (*self.module.parameters(), *self.module.buffers())  # made under inference_mode they count no writes
        weights = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]
        if weights != self._weights:
            self._weights, self._stamp = weights, str(next(_STAMPS))
        return self._stamp


def _stamped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with an argument in front that only tells graphs apart."""

    def stamped(stamp: str, *args: Any, **kwargs: Any) -> Any:
        stamp.startswith("")  # torch tells graphs apart by what they read alone
        return function(*args, **kwargs)

    stamped.__code__ = stamped.__code__.replace()  # torch limits the graphs of a code object, so each has one of its own
    return stamped


@contextmanager
def weights_as_constants() -> Iterator[None]:
    """In here torch compiles with weights as constants ("freezing"), which it reads from settings of the process."""
    from torch._inductor import config

    from fastervlm.generation.packing import packing_pass

    with _LOCK:
        names = ("freezing", "post_grad_custom_pre_pass")
        _before.append(_before[0] if _before else {name: getattr(config, name) for name in names})
        config.freezing = True
        config.post_grad_custom_pre_pass = config.post_grad_custom_pre_pass or packing_pass()
    try:
        yield
    finally:
        with _LOCK:
            before = _before.pop()
            if not _before:
                for name, value in before.items():
                    setattr(config, name, value)
