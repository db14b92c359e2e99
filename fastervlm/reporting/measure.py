"""The one place that measures: time, memory, the size of KV caches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import StoppingCriteria

from encoders import UserError


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work given to it; work on the CPU is done when its call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds from lap to lap on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap (or the beginning), all work of the device included."""
        synchronize(self.device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


class FirstTokenClock(StoppingCriteria):
    """The time to the first token of one call of `generate`; hand it over among `stopping_criteria`.

    `seconds` runs from `start()` until the first new token of every row is chosen: inputs moved to the device, vision
    tower, ranking and selection of visual tokens, projector, prefill of the language model, choice of the token. Reading
    and processing the pictures and the text is not in it. The device is synchronised at both ends. It never stops the
    generation.
    """

    def __init__(self, device: torch.device) -> None:
        self._watch = Stopwatch(device)
        self.seconds: float | None = None

    def start(self) -> None:
        """Begin to count."""
        self.seconds = None
        self._watch.lap()

    def stop(self) -> float:
        """Seconds from `start()` to now; to be called once, after `generate`."""
        return (self.seconds or 0.0) + self._watch.lap()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,) all False."""
        if self.seconds is None:
            self.seconds = self._watch.lap()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing, told by their median and quartiles."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """Half of the values lie below."""
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the values lie between these two."""
        low, high = np.percentile(self.values, (25, 75))
        return float(low), float(high)

    def ratio(self, base: Spread) -> float:
        """Median of the ratios to `base`, pair by pair."""
        return self.ratios(base).median

    def ratios(self, base: Spread) -> Spread:
        """The ratios to `base`, pair by pair: each value was measured in the same round as its partner."""
        return Spread([value / other for value, other in zip(self.values, base.values, strict=True)])

    def summary(self) -> dict[str, Any]:
        """The spread for a JSON file."""
        return {"median": self.median, "quartiles": list(self.quartiles), "values": list(self.values)}


def peak_bytes(device: torch.device, call: Callable[[], Any]) -> int:
    """The most memory that torch held at once on the device during `call()`, beyond what it held before.

    It is what torch's allocator gave out: on CUDA by its own statistics, on the CPU by the profiler's record of each block
    taken and given back, which slows the call down. Memory that libraries take for themselves is in neither.

    Raises:
        UserError: the device is of another kind.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise UserError(f"Memory is measured on cpu and cuda, not on {device}; use one of them.")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler reports its start and stop on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    blocks = sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]")
    return max(0, int(np.cumsum([size for _, size in blocks]).max(initial=0)))


def flop_counter() -> FlopCounterMode:
    """torch's counter of operations. Releases before 2.15 pass over the CPU's kernel of attention, which counts here too."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    count = {attention: lambda queries, keys, values, *_, **__: sdpa_flop_count(queries, keys, values)}
    return FlopCounterMode(display=False, custom_mapping=count)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys, values and states in a KV cache of transformers, whose layers may hold unequal numbers of tokens."""
    names = ("keys", "values", "conv_states", "recurrent_states")
    held = [getattr(layer, name, None) for layer in cache.layers for name in names]
    return sum(part.numel() * part.element_size() for part in held if isinstance(part, torch.Tensor))
