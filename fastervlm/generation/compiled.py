"""Graphs of torch.compile, with the weights as constants on a CPU, and how long they took to make."""

from __future__ import annotations

import gc
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from encoders.errors import UserNote

_LOCK = threading.Lock()
_before: list[dict[str, Any]] = []  # what torch's settings were, once for each that is inside `weights_as_constants`


class Graphs:
    """A function as torch compiles it: a graph for each new kind of input, the function itself past torch's limit of graphs.

    On a CPU the weights become constants of the graph and are packed once for its matrix products; a copy of them is held so.
    Where weights were changed since, the graphs are let go, with those copies, and made anew.

    Attributes:
        seconds: what making graphs has taken so far, the calls that needed them included.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module, **options: Any) -> None:
        self.function = function
        self.module = module
        self.options = options
        self.seconds = 0.0
        self._compiled = _compiled(function, options)
        self._weights: list[tuple[int, int]] | None = None
        self._packed: Callable[..., Any] | None = None  # graphs of these weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`function` by its graph."""
        if torch.compiler.is_compiling():  # a part of somebody else's graph
            return self.function(*args, **kwargs)
        from torch._dynamo.exc import FailOnRecompileLimitHit  # seconds to import, needless to who compiles nothing
        from torch._dynamo.utils import counters

        made, start = counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            if not self._on_cpu or torch.is_grad_enabled():
                return self._compiled(*args, **kwargs)
            with weights_as_constants():
                return self._of_these_weights()(*args, **kwargs)
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

    def _of_these_weights(self) -> Callable[..., Any]:
        """What has the weights as constants; another one whenever they were changed."""
        tensors = (*self.module.parameters(), *self.module.buffers())  # made under inference_mode they count no writes
        weights = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]
        with _LOCK:
            if self._packed is None or weights != self._weights:
                if self._packed is not None:
                    self._packed = None
                    gc.collect()  # packed weights are large, and stand in cycles
                self._weights, self._packed = weights, _compiled(self.function, self.options)
            return self._packed


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """`function` for torch to compile, whose graphs go with it."""

    def apart(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    apart.__code__ = apart.__code__.replace()  # torch keeps, and limits, the graphs of a code object: this one has its own
    weakref.finalize(apart, _let_go, apart.__code__).atexit = False
    return torch.compile(apart, **options)


def _let_go(code: CodeType) -> None:
    """Free the graphs of a code object, which refer to it and so never go by themselves."""
    from torch._dynamo.eval_frame import reset_code

    reset_code(code)
    codecache = sys.modules.get("torch._inductor.codecache")
    if codecache is None:
        return
    # Graphs with constants hold what they need; torch lists their modules for its profiler, and would so keep the constants.
    modules = codecache.PyCodeCache.modules
    held = [module for module in modules if any(isinstance(value, Tensor) for value in vars(module).values())]
    modules[:] = [module for module in modules if module not in held]
    for module in held:
        if sys.modules.get(module.__name__) is module:
            sys.modules.pop(module.__name__, None)


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
