"""The one place that measures time."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import StoppingCriteria


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

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,) all False."""
        if self.seconds is None:
            self.seconds = self._watch.lap()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
