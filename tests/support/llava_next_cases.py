"""What tests of LLaVA-NeXT go through, and agreement with one pruned by hand."""

from itertools import groupby
from typing import Any

import pytest

import fastervlm
from tests.support import plain_next, tiny
from tests.support.checks import close
from tests.support.plain_next import MODES, PROMPTS, traces

N = tiny.PATCHES
ONE, TWO = PROMPTS["one"], PROMPTS["two pictures"]
each_mode = pytest.mark.parametrize("anyres", MODES)
each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
both_positions = pytest.mark.parametrize("positions", ["compact", "original"])


def agree(model, batch, reference, rows=None, **settings) -> Any:
    """Kept tokens and logits of each row are those of the reference; the batch is not padded. Returns the trace."""
    rows = rows or list(reference.rows(batch))
    given: dict[str, Any] = {"keep": reference.keep, "newline": reference.newline, "budget": reference.budget} | settings
    with fastervlm.prune(model, anyres=reference.anyres, **given) as handle:
        logits = model(**batch).logits
    for ours, row in zip(logits, rows, strict=True):
        close(ours, reference.logits(*row))
    pictures = [picture for _, own in rows for picture in own or []]
    assert [trace.tokens.tolist() for trace in traces(handle)] == [reference.tokens(picture) for picture in pictures]
    return traces(handle)


def windows(reference, size):
    """For each crop that takes part: its number, and the numbers, rows and columns of its patches."""
    numbers = sorted(set(reference.order(size)) - {plain_next.NEWLINE})
    for crop, group in groupby(numbers, key=lambda number: number // N):
        inside = list(group)
        high = len({number % N // 4 for number in inside})
        yield crop, inside, high, len(inside) // high
