"""`generate` and `forward` of a pruned model: encode and choose, shorten the prompt, run the stock method, restore.

Both hand the stock model a shorter prompt and the kept features ready-made (`mm_encoder_outputs`), which is the way
transformers' own `generate` passes pictures on; beams, caches and decoding loops are then entirely its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from encoders import UserError
from fastervlm.generation.history import continue_prompt, continue_step, growing, known, seal
from fastervlm.generation.host import Host
from fastervlm.generation.inputs import (
    Call,
    pad_id,
    pictures_in,
    placeholders,
    refuse_lonely_placeholders,
    sequences,
    setting,
    visual,
)
from fastervlm.generation.kv_cache import CACHE, cache_in
from fastervlm.generation.running import Running, current, running
from fastervlm.generation.shorten import shorten, tell_of_context
from fastervlm.generation.splice import Splice
from fastervlm.generation.versions import is_older, needs_transformers
from fastervlm.generation.whole_prompt import Streamer

# How `forward` is told of columns of the prompt beside a value for each, and what cuts it.
_COLUMNS = {"attention_mask": "take_square", "logits_to_keep": "take_columns"}
_BEAMS = (
    "A KV cache that beam search left holds the beams in another order than the answers; "
    "pass the whole history with its pictures, without the KV cache."
)


@torch.no_grad()
def generate(host: Host, call: Call) -> Any:
    """`model.generate(**call)` with pruned pictures; what it returns begins with the unpruned prompt.

    `keep`, if the call has one, is the budget of this call alone.
    """
    if call.get("inputs") is not None:
        call["input_ids"] = call.pop("inputs")
    given = dict(call)
    pruning = host.pruning_of(call)
    past, check = cache_in(call), None
    history = known(past)
    if history is not None:
        splice = continue_prompt(host.model, call, history)
    elif pictures_in(call):
        host.family.check_generation(host.model, partial(setting, host.model, call))
        if setting(host.model, call, "prefill_chunk_size"):
            needs_transformers("5.23", "read a prompt with pictures in chunks", "leave out prefill_chunk_size")
        splice, check = shorten(host, pruning, call, by_mask=True)
        _refuse_gap_at_the_end(splice)
        _refuse_mixed_pictures(host.model, call)
    else:
        return _as_given(host, call)
    tell_of_context(host, splice)
    _shift_lengths(host.model, call, splice)
    if call.get("streamer") is not None:
        call["streamer"] = Streamer(call["streamer"], splice)
    seen = _BEAMS if (setting(host.model, call, "num_beams") or 1) > 1 else history or splice
    features = call.get("mm_encoder_outputs")
    static = nullcontext() if host.language is None else host.language.static(host.model, call)
    with growing(past, seen), _explained(check), running(Running(host, given, splice, features)), static:
        output = host.original("generate")(**call)
    if check is not None:
        check()  # what could not be looked at before without waiting for a device
    if isinstance(output, Tensor):
        return splice.restore(output)
    if past is None and isinstance(output.get(CACHE), Cache):
        seal(output[CACHE], seen)
    output.sequences = splice.restore(output.sequences)
    return output


def generate_batch(host: Host, call: Call) -> Any:
    """`model.generate_batch(**call)`, continuous batching of transformers, which shows the model no pictures."""
    for place, ids in enumerate(call.get("inputs") or ()):
        if bool(visual(host.model, torch.as_tensor(ids)).any()):
            raise UserError(
                f"Prompt {place + 1} of {len(call['inputs'])} holds placeholders, but generate_batch takes no pictures; ask "
                "about pictures with generate, in batches of prompts."
            )
    return host.original("generate_batch")(**call)


def forward(host: Host, call: Call) -> Any:
    """`model(**call)` with pruned pictures; logits have the pruned length, and labels are cut alike."""
    pruning = host.pruning_of(call)
    past = cache_in(call)
    splice, check = known(past), None
    if splice is not None:
        continue_step(host.model, call, splice)
    elif pictures_in(call):
        columns = _of_columns(call)
        splice, check = shorten(host, pruning, call, by_mask=False)
        tell_of_context(host, splice)
        call |= {name: getattr(splice, _COLUMNS[name])(given) for name, given in columns.items()}
    else:
        _prepare_inner(host, call)
    if splice is not None and call.get("position_ids") is not None:
        call["position_ids"] = call["position_ids"] + host.family.first_position(host.model)
    with growing(past, splice), _explained(check):
        output = host.original("forward")(**call)
    if past is None and splice is not None:
        for part in output.values() if isinstance(output, dict) else output:
            if isinstance(part, Cache):
                seal(part, splice)
    return output


def _of_columns(call: Call) -> dict[str, Tensor]:
    """What a call says of columns of the prompt in another form than a value for each, taken out of it."""
    mask, logits = call.get("attention_mask"), call.get("logits_to_keep")
    ids = call.get("input_ids")
    found = {}
    pairs = isinstance(mask, Tensor) and ids is not None and mask.dim() == 4 and mask.shape[-2:] == (ids.shape[1],) * 2
    if pairs and (mask.dtype == torch.bool or mask.is_floating_point()):  # type: ignore[union-attr]
        found["attention_mask"] = call.pop("attention_mask")
    if isinstance(logits, Tensor) and logits.dim() == 1:
        found["logits_to_keep"] = call.pop("logits_to_keep")
    return found


@contextmanager
def _explained(check: Callable[[], None] | None) -> Iterator[None]:
    """Where the stock model fails on a prompt that was not read ahead, let `check` say why if it knows."""
    try:
        yield
    except Exception:
        if check is not None:
            check()
        raise


def _as_given(host: Host, call: Call) -> Any:
    """`generate` where nothing is to be pruned: text alone, or features that the caller encoded, one for each placeholder."""
    features = call.get("mm_encoder_outputs")
    if not features:
        refuse_lonely_placeholders(host.model, call.get("input_ids"))
    with running(Running(host, call, None, features)):
        return host.original("generate")(**call)


def _prepare_inner(host: Host, call: Call) -> None:
    """Prepare a `forward` without pixels: a step of the model's own `generate`, or text, or features of the caller's."""
    past = cache_in(call)
    if not call.get("mm_encoder_outputs") and not torch.compiler.is_compiling():  # there, values are not read: one graph a step
        _lend_features(host, call)
    if call.get("mm_encoder_outputs"):
        _blank_guessed_placeholders(host.model, call)
        if host.pruning.positions == "original" and past is None and call.get("attention_mask") is None:
            call["attention_mask"] = torch.ones_like(call["input_ids"])  # see shorten


def _lend_features(host: Host, call: Call) -> None:
    """The features of a draft's pictures, which the stock loop does not hand on to it; other placeholders are refused."""
    past, now = cache_in(call), current(host)
    if past is not None and hasattr(past, "get_seq_length") and past.get_seq_length() > 0:
        return
    if now is not None and now.features is not None and _drafts(now):
        call["mm_encoder_outputs"] = now.features
    else:
        refuse_lonely_placeholders(host.model, call.get("input_ids"))


def _drafts(now: Running) -> bool:
    """Whether this call of `generate` drafts for another model."""
    return bool(getattr(now.given.get("generation_config"), "is_assistant", False))


def _refuse_gap_at_the_end(splice: Splice) -> None:
    """transformers numbers what it generates from the last token of the prompt on, so that one has to stay."""
    stays = (splice.order == splice.ids.shape[1] - 1) & ~splice.filler
    if (not splice.compact or splice.axes is not None) and not bool(stays.any(dim=1).all()):  # which waits for a device
        raise UserError(
            "Where tokens keep their positions a prompt cannot end with a picture whose last patch is dropped; put text behind "
            "the picture or, where the model can, use positions='compact'."
        )


def _refuse_mixed_pictures(model: Any, call: Call) -> None:
    """transformers 5.18 repeats the pictures of a prompt for its beams and answers as 1, 1, 2, 2, not as 1, 2, 1, 2."""
    if not is_older("5.19") or sequences(model, call) == 1:
        return
    for kind, found in call["mm_encoder_outputs"].items():
        if len(found.pooler_output) > int(placeholders(model, call["input_ids"], kind).any(dim=1).sum()):
            done = "search with beams, or give several answers, where a prompt has several pictures"
            needs_transformers("5.19", done, "ask for one answer without beams")


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
