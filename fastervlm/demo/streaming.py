"""An answer while it is written: handed over token by token, and ended when nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class Writer(BaseStreamer):
    """Hands over the text so far after each token."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt (B, T) first, then with each new token (B,)."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.tolist()
        self.write(self.tokenizer.decode(self.ids, skip_special_tokens=True).strip())

    def end(self) -> None:
        """Called at the end."""


class Stop(StoppingCriteria):
    """Ends the generation when told to."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,)."""
        return torch.full((input_ids.shape[0],), self.stopped(), dtype=torch.bool, device=input_ids.device)
