"""KV caches that hold a pruned prompt: remembered, so that continuing from one is right or refused, never silently wrong.

A cache is shorter than the prompt its caller knows. It therefore carries the `Splice` that made it, and refuses to grow
outside a pruned model's own calls, where the stock model would misread the caller's longer prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from encoders import UserError
from fastervlm.splice import Splice

_TAG = "_fastervlm_splice"


def seal(cache: Any, splice: Splice | str) -> None:
    """Mark a cache as one that holds the pruned prompt of `splice`, or that cannot be continued for the reason given."""
    setattr(cache, _TAG, splice)
    cache.update = _refuse


def known(cache: Any) -> Splice | None:
    """The splice of a sealed cache; None for any other cache and for no cache."""
    splice = getattr(cache, _TAG, None)
    if isinstance(splice, str):
        raise UserError(splice)
    return splice


@contextmanager
def growing(cache: Any, splice: Splice | str | None) -> Iterator[None]:
    """Let a cache grow; afterwards it is sealed with `splice`, if there is one, even where the body raises."""
    if known(cache) is not None:
        del cache.update
        delattr(cache, _TAG)
    try:
        yield
    finally:
        if cache is not None and splice is not None:
            seal(cache, splice)


def _refuse(*_: object, **__: object) -> NoReturn:
    raise UserError(
        "This KV cache was made by a model under fastervlm.prune, which has been removed since; "
        "continue while the model is pruned, or start again without past_key_values."
    )
