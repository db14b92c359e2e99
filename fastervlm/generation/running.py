"""One call of `generate` while it runs: what the stock loop's own steps have to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastervlm.generation.host import Host
from fastervlm.generation.splice import Splice


@dataclass(frozen=True, eq=False)
class Running:
    """A call of `generate` on a pruned model.

    Attributes:
        host: the model.
        given: the caller's arguments, before anything was shortened.
        splice: which columns of the prompts stay; None where the caller brought ready features for all placeholders.
        features: what stands at the placeholders, as `mm_encoder_outputs`. The stock loop keeps it from a model that drafts for
            another one, which then would read placeholders as words.
    """

    host: Host
    given: dict[str, Any]
    splice: Splice | None
    features: Any


_RUNNING: ContextVar[Running | None] = ContextVar("fastervlm_running", default=None)


@contextmanager
def running(call: Running) -> Iterator[None]:
    """While it lasts, `current(call.host)` is this call, in this thread alone; calls of other models may run inside it."""
    token = _RUNNING.set(call)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def current(host: Host) -> Running | None:
    """The call of `generate` that runs on this model in this thread; None if none does."""
    found = _RUNNING.get()
    return found if found is not None and found.host is host else None
