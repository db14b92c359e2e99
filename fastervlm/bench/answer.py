"""One greedy answer of a set length, as benchmarks time it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastervlm.eval.answerer import GREEDY


def answer(model: Any, call: Mapping[str, Any], new_tokens: int, pad_token_id: int, *clocks: Any) -> Any:
    """What `generate` returns for a greedy answer of exactly `new_tokens` tokens, cache included; clocks see each token."""
    return model.generate(
        **call,
        **GREEDY,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=pad_token_id,
        stopping_criteria=list(clocks),
        return_dict_in_generate=True,
    )
