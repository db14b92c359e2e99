"""Where the KV cache stands among the arguments and outputs of transformers' models and of `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.generation import GenerateDecoderOnlyOutput

# transformers calls it past_key_values up to 5.23; later versions take that name too, but say that it is out of use.
CACHE = "cache" if "cache" in {field.name for field in fields(GenerateDecoderOnlyOutput)} else "past_key_values"


def cache_in(call: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, by either name; None if there is none."""
    return call.get(CACHE, call.get("past_key_values"))
