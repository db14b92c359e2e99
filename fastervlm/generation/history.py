"""KV caches that hold a pruned prompt: remembered, so that continuing from one is right or refused, never silently wrong.

A cache is shorter than the prompt its caller knows. It therefore carries the `Splice` that made it, and refuses to grow
outside a pruned model's own calls, where the stock model would misread the caller's longer prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import torch

from encoders import UserError
from fastervlm.generation.inputs import (
    Call,
    check_shapes,
    cut_others,
    guess_mask,
    pictures_in,
    refuse_lonely_placeholders,
    refuse_new_pictures,
    setting,
)
from fastervlm.generation.kv_cache import cache_in
from fastervlm.generation.splice import Splice

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
        "continue while the model is pruned, or start again without the KV cache."
    )


def continue_prompt(model: Any, call: Call, history: Splice) -> Splice:
    """Prepare a `generate` that goes on from a sealed cache: the known part of the prompt is cut as it was."""
    if pictures_in(call):
        refuse_new_pictures()
    _refuse_modes_without_history(model, call)
    check_shapes(call)
    ids, prompt = call["input_ids"], history.for_rows(len(call["input_ids"]))
    more, mask = ids.shape[1] - prompt.ids.shape[1], call.get("attention_mask")
    cached = _cached(call, prompt)
    if prompt.kept + more <= cached or not torch.equal(ids[:, :-more], prompt.ids.to(ids.device)):
        raise UserError(
            "This KV cache was made from a pruned prompt that the new input does not begin with; pass the whole history "
            "as it was returned, followed by the new turn, or start again without the KV cache."
        )
    refuse_lonely_placeholders(model, ids[:, -more:])
    splice = replace(prompt.grow(more, guess_mask(model, call) if mask is None else mask), ids=ids)
    call["input_ids"], call["attention_mask"] = splice.short_ids, splice.short_mask
    call["position_ids"] = splice.positions
    cut_others(call, splice)
    return splice


def _refuse_modes_without_history(model: Any, call: Call) -> None:
    """In these modes transformers reads a prompt anew even where a cache holds it already."""
    guess = call.get("assistant_model") is not None or setting(model, call, "prompt_lookup_num_tokens")
    if guess or setting(model, call, "use_cache") is False:
        raise UserError(
            "A KV cache cannot be continued with use_cache=False, prompt lookup or an assistant model; "
            "leave that out, or start again without the KV cache."
        )


def continue_step(model: Any, call: Call, history: Splice) -> None:
    """Prepare a `forward` that goes on from a sealed cache.

    The mask may speak of the unpruned history or of the pruned one. Positions go on as they began, whatever is passed.
    """
    if pictures_in(call):
        refuse_new_pictures()
    refuse_lonely_placeholders(model, call.get("input_ids"))
    new = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    prompt = history.for_rows(len(new))
    length, mask = _cached(call, prompt) + new.shape[1], call.get("attention_mask")
    if mask is not None and tuple(mask.shape) not in {(len(new), length + prompt.removed), (len(new), length)}:
        raise UserError(
            f"An attention mask of shape {tuple(mask.shape)} does not fit {len(new)} rows with a history of "
            f"{length + prompt.removed} tokens ({length} of them kept); pass a mask over the whole history, or none."
        )
    splice = prompt.grow(length - prompt.kept, mask)
    call["attention_mask"] = splice.short_mask
    call["position_ids"] = splice.positions[..., -new.shape[1] :]


def _cached(call: Call, prompt: Splice) -> int:
    """How many tokens a sealed cache holds: the whole pruned prompt at least."""
    cached = int(cache_in(call).get_seq_length())
    if cached < prompt.kept:
        raise UserError(
            f"This KV cache was cut down to {cached} of the {prompt.kept} tokens of its pruned prompt; "
            "start again without the KV cache."
        )
    return cached
