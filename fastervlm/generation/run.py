"""`generate` and `forward` of a pruned model: encode and choose, shorten the prompt, run the stock method, restore.

Both hand the stock model a shorter prompt and the kept features ready-made (`mm_encoder_outputs`), which is the way
transformers' own `generate` passes pictures on; beams, caches and decoding loops are then entirely its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from encoders import UserError
from fastervlm.generation.history import continue_prompt, continue_step, growing, known, seal
from fastervlm.generation.host import Host
from fastervlm.generation.inputs import Call, pad_id, pictures_in, placeholders, refuse_lonely_placeholders, setting
from fastervlm.generation.kv_cache import CACHE, cache_in
from fastervlm.generation.shorten import shorten
from fastervlm.generation.splice import Splice

_BEAMS = (
    "A KV cache that beam search left holds the beams in another order than the answers; "
    "pass the whole history with its pictures, without the KV cache."
)


@torch.no_grad()
def generate(host: Host, call: Call) -> Any:
    """`model.generate(**call)` with pruned pictures; what it returns begins with the unpruned prompt."""
    if call.get("inputs") is not None:
        call["input_ids"] = call.pop("inputs")
    past, check = cache_in(call), None
    history = known(past)
    if history is not None:
        splice = continue_prompt(host.model, call, history)
    elif pictures_in(call):
        splice, check = shorten(host, call, by_mask=True)
        _refuse_gap_at_the_end(splice)
    else:
        refuse_lonely_placeholders(host.model, call.get("input_ids"))
        return host.original("generate")(**call)
    _shift_lengths(host.model, call, splice)
    if call.get("streamer") is not None:
        call["streamer"] = _WholePrompt(call["streamer"], splice)
    seen = _BEAMS if (setting(host.model, call, "num_beams") or 1) > 1 else history or splice
    with growing(past, seen), _explained(check):
        output = host.original("generate")(**call)
    if isinstance(output, Tensor):
        return splice.restore(output)
    if past is None and isinstance(output.get(CACHE), Cache):
        seal(output[CACHE], seen)
    output.sequences = splice.restore(output.sequences)
    return output


def forward(host: Host, call: Call) -> Any:
    """`model(**call)` with pruned pictures; logits have the pruned length, and labels are cut alike."""
    past = cache_in(call)
    splice, check = known(past), None
    if splice is not None:
        continue_step(host.model, call, splice)
    elif pictures_in(call):
        splice, check = shorten(host, call, by_mask=False)
    elif call.get("mm_encoder_outputs"):
        _prepare_inner(host, call)
    elif past is None or past.get_seq_length() == 0:
        refuse_lonely_placeholders(host.model, call.get("input_ids"))
    with growing(past, splice), _explained(check):
        output = host.original("forward")(**call)
    if past is None and splice is not None:
        for part in output.values() if isinstance(output, dict) else output:
            if isinstance(part, Cache):
                seal(part, splice)
    return output


@contextmanager
def _explained(check: Callable[[], None] | None) -> Iterator[None]:
    """Where the stock model fails on a prompt that was not read ahead, let `check` say why if it knows."""
    try:
        yield
    except Exception:
        if check is not None:
            check()
        raise


def _prepare_inner(host: Host, call: Call) -> None:
    """Prepare a `forward` that the model's own `generate` calls with the features it was given."""
    _blank_guessed_placeholders(host.model, call)
    if host.pruning.positions == "original" and cache_in(call) is None and call.get("attention_mask") is None:
        call["attention_mask"] = torch.ones_like(call["input_ids"])  # see shorten


def _refuse_gap_at_the_end(splice: Splice) -> None:
    """transformers numbers what it generates from the last token of the prompt on, so that one has to stay."""
    stays = (splice.order == splice.ids.shape[1] - 1) & ~splice.filler
    if not splice.compact and not bool(stays.any(dim=1).all()):  # which waits for a device
        raise UserError(
            "With positions='original' a prompt cannot end with a picture whose last patch is dropped; "
            "put text behind the picture or use positions='compact'."
        )


def _blank_guessed_placeholders(model: Any, call: Call) -> None:
    """Prompt lookup may guess that the answer goes on with <image>: such guesses, behind the prompt, have no features."""
    ids = call.get("input_ids")
    if ids is None or len(ids) != 1:
        return
    for kind, pictures in call["mm_encoder_outputs"].items():
        if pictures is not None:
            placeholder, count = placeholders(model, ids, kind), sum(map(len, pictures.pooler_output))
            ids = ids.masked_fill(placeholder & (placeholder.cumsum(dim=1) > count), pad_id(model))
    call["input_ids"] = ids


def _shift_lengths(model: Any, call: Call, splice: Splice) -> None:
    """`max_length` and `min_length` count the unpruned prompt: take off what it lost."""
    longest, shortest = setting(model, call, "max_length"), setting(model, call, "min_length")
    if longest is not None and setting(model, call, "max_new_tokens") is None:
        if longest <= splice.ids.shape[1]:
            raise UserError(
                f"max_length={longest} leaves no room for an answer behind a prompt of {splice.ids.shape[1]} tokens "
                "(the unpruned prompt counts); set max_new_tokens instead."
            )
        call["max_length"] = longest - splice.removed
    if shortest and setting(model, call, "min_new_tokens") is None:
        call["min_length"] = max(0, shortest - splice.removed)


class _WholePrompt:
    """A streamer that is shown the unpruned prompt first, as without pruning."""

    def __init__(self, streamer: Any, splice: Splice) -> None:
        self.streamer, self.splice, self.first = streamer, splice, True

    def put(self, value: Tensor) -> None:
        """Pass tokens on; the first that come are the prompt."""
        self.streamer.put(self.splice.for_rows(len(value)).ids.cpu() if self.first else value)
        self.first = False

    def end(self) -> None:
        """Pass the end on."""
        self.streamer.end()
