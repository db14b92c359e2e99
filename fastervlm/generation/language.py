"""A compiled language model: its prefill by one graph and its steps by another, over KV caches of a few fixed sizes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import StaticCache

from encoders import UserError
from fastervlm.generation.compiled import Graphs
from fastervlm.generation.inputs import INSIDE, Call, sequences, setting
from fastervlm.generation.kv_cache import CACHE, cache_in

ROOM = 256  # columns by which caches differ in size, so that answers and prompts of many lengths share graphs
IDLE = 4  # caches that wait for the next call of their size; those used last

# With these `generate` runs as without: they bring a cache of their own, hand it out, or reorder it.
_OWN = ("assistant_model", "prompt_lookup_num_tokens", "cache_implementation", "return_dict_in_generate", "prefill_chunk_size")


class Language:
    """The language model of one instance, compiled.

    Attributes:
        decoder: the stock language model, whose `forward` stays as it is outside `static`.
        prefill: the graphs of prompts: one for the first length, then one for all others.
        step: the graph of a token; on CUDA replayed as one launch ("reduce-overhead").
    """

    def __init__(self, decoder: Any, **options: Any) -> None:
        if "forward" in vars(decoder):
            raise UserError(
                f"The forward of this {type(decoder).__name__} was replaced, as offloading does, so it cannot be compiled; "
                "leave language_model out."
            )
        self.decoder = decoder
        cuda = next(decoder.parameters()).device.type == "cuda"
        replayed = cuda and not {"mode", "options", "backend"} & {*options}
        self.prefill = Graphs(_forward, decoder, **options)
        self.step = Graphs(_forward, decoder, **({"mode": "reduce-overhead"} if replayed else {}), **options)
        self._free = deque[tuple[tuple[int, int], Any]](maxlen=IDLE)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`decoder.forward`; by a graph where its cache is one of `static`."""
        cache, embeds = cache_in(kwargs), kwargs.get("inputs_embeds")
        if embeds is None or not getattr(cache, "_fastervlm_static", False):
            return _forward(self.decoder, *args, **kwargs)
        if embeds.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return (self.step if embeds.shape[1] == 1 else self.prefill)(self.decoder, *args, **kwargs)

    @contextmanager
    def static(self, model: Any, call: Call) -> Iterator[None]:
        """While it lasts, a call of `generate` has a KV cache of a fixed size, if it can do with one, and so runs by graphs."""
        if not _fits(model, call):
            yield
            return
        rows, room = len(call["input_ids"]), _room(model, call)
        cache = self._idle((rows, room))
        cache = self._cache(rows, room) if cache is None else cache
        call[CACHE], call["disable_compile"] = cache, True  # else transformers compiles the steps once more, around these
        try:
            yield
        finally:
            cache.reset()
            self._free.append(((rows, room), cache))

    def _idle(self, size: tuple[int, int]) -> Any:
        """An idle cache of that size, taken; None where there is none."""
        for entry in list(self._free):
            if entry[0] == size:
                with suppress(ValueError):  # another thread took it
                    self._free.remove(entry)
                    return entry[1]
        return None

    def _cache(self, rows: int, room: int) -> Any:
        """An empty cache, whose tensors keep their places for good."""
        config = self.decoder.config
        cache: Any = StaticCache(config=config, max_cache_len=room)
        weight = next(self.decoder.parameters())
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache.early_initialization(rows, heads, width, weight.dtype, weight.device)
        if weight.device.type == "cpu":
            _forget_places(cache)
        cache._fastervlm_static = True
        return cache


def _forward(decoder: Any, *args: Any, **kwargs: Any) -> Any:
    """The stock `forward`, past what stands on the instance."""
    return type(decoder).forward(decoder, *args, **kwargs)


def _forget_places(cache: Any) -> None:
    """Take off the marks that replaying on CUDA needs: where weights are constants, torch takes what is marked for one too."""
    for layer in cache.layers:
        for part in (layer.keys, layer.values, layer.cumulative_length):
            vars(part).pop("_dynamo_static_input_type", None)


def _fits(model: Any, call: Call) -> bool:
    """Whether a call of `generate` needs no other cache than one of a fixed size that nobody sees."""
    own = cache_in(call) is not None or setting(model, call, "use_cache") is False or INSIDE in vars(model)
    return sequences(model, call) == 1 and not own and not any(setting(model, call, name) for name in _OWN)


def _room(model: Any, call: Call) -> int:
    """How many columns a cache needs for prompt and answer, rounded up."""
    length, more = call["input_ids"].shape[1], setting(model, call, "max_new_tokens")
    need = length + more if more is not None else max(length + 1, setting(model, call, "max_length") or length + 20)
    return -(-need // ROOM) * ROOM
