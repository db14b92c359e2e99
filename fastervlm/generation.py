"""`generate` and `forward` of a pruned model: encode and choose, shorten the prompt, run the stock method, restore.

Both hand the stock model a shorter prompt and the kept features ready-made (`mm_encoder_outputs`), which is the way
transformers' own `generate` passes pictures on; beams, caches and decoding loops are then entirely its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders import UserError
from fastervlm.history import growing, known, seal
from fastervlm.llava import Encoded
from fastervlm.splice import Splice

if TYPE_CHECKING:
    from fastervlm.prune import PruneHandle

Call = dict[str, Any]

_BEAMS = (
    "A KV cache that beam search left holds the beams in another order than the answers; "
    "pass the whole history with its pictures, without past_key_values."
)


@torch.no_grad()
def generate(handle: PruneHandle, call: Call) -> Any:
    """`model.generate(**call)` with pruned pictures; what it returns begins with the unpruned prompt."""
    if call.get("inputs") is not None:
        call["input_ids"] = call.pop("inputs")
    past = call.get("past_key_values")
    history = known(past)
    if history is not None:
        splice = _continue(handle.model, call, history)
    elif call.get("pixel_values") is not None:
        splice = _shorten(handle, call, by_mask=True)
        _refuse_gap_at_the_end(splice)
    else:
        _refuse_lonely_placeholders(handle.model, call.get("input_ids"))
        return handle.original("generate")(**call)
    _shift_lengths(handle.model, call, splice)
    if call.get("streamer") is not None:
        call["streamer"] = _WholePrompt(call["streamer"], splice)
    seen = _BEAMS if (_setting(handle.model, call, "num_beams") or 1) > 1 else history or splice
    with growing(past, seen):
        output = handle.original("generate")(**call)
    if isinstance(output, Tensor):
        return splice.restore(output)
    if past is None and isinstance(output.past_key_values, Cache):
        seal(output.past_key_values, seen)
    output.sequences = splice.restore(output.sequences)
    return output


def forward(handle: PruneHandle, call: Call) -> Any:
    """`model(**call)` with pruned pictures; logits have the pruned length, and labels are cut alike."""
    past = call.get("past_key_values")
    splice = known(past)
    if splice is not None:
        _step(handle.model, call, splice)
    elif call.get("pixel_values") is not None:
        splice = _shorten(handle, call, by_mask=False)
    elif call.get("mm_encoder_outputs"):
        _prepare_inner(handle, call)
    elif past is None or past.get_seq_length() == 0:
        _refuse_lonely_placeholders(handle.model, call.get("input_ids"))
    with growing(past, splice):
        output = handle.original("forward")(**call)
    if past is None and splice is not None:
        for part in output.values() if isinstance(output, dict) else output:
            if isinstance(part, Cache):
                seal(part, splice)
    return output


def _shorten(handle: PruneHandle, call: Call, *, by_mask: bool) -> Splice:
    """Encode the pictures of `call`, and put the pruned prompt and the kept features in their place."""
    if call.get("past_key_values") is not None and call["past_key_values"].get_seq_length() > 0:
        _refuse_new_pictures()
    _check_shapes(call)
    ids, mask = call["input_ids"], call.get("attention_mask")
    if by_mask and mask is None:
        mask = _guess_mask(handle.model, call)
    numbers = _numbers(call, mask, by_mask=by_mask)
    encoded = handle.family.encode(handle.model, handle.budget, handle.method, call)
    keep = _columns_to_keep(handle.model, ids, encoded)
    compact = handle.positions == "compact"
    splice = Splice.of(ids, mask, keep, numbers, pad=_pad_id(handle.model), compact=compact)
    for name in handle.family.inputs:
        call.pop(name, None)
    call["input_ids"] = splice.short_ids
    call["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=encoded.features)}  # type: ignore[arg-type]
    # Without a mask transformers takes gaps in the positions for borders of packed rows.
    if mask is not None or not compact or bool(splice.filler.any()):
        call["attention_mask"] = splice.short_mask
    call["position_ids"] = splice.positions
    if call.get("labels") is not None:
        call["labels"] = splice.take_labels(call["labels"])
    handle.trace = encoded.trace
    return splice


def _check_shapes(call: Call) -> None:
    ids = call.get("input_ids")
    if ids is None or call.get("inputs_embeds") is not None:
        raise UserError(
            "A pruned model finds its pictures by the placeholders in input_ids; pass input_ids, not inputs_embeds."
        )
    for name in ("attention_mask", "labels", "position_ids"):
        given = call.get(name)
        if given is not None and given.shape != ids.shape and (name != "position_ids" or given.shape != ids[:1].shape):
            raise UserError(
                f"Under fastervlm.prune {name} must have the shape of input_ids, {tuple(ids.shape)}, not {tuple(given.shape)}."
            )


def _numbers(call: Call, mask: Tensor | None, *, by_mask: bool) -> Tensor:
    """Position ids (R, T) of the unpruned prompt: the caller's, or as transformers would count, unmasked tokens or columns."""
    ids, given = call["input_ids"], call.get("position_ids")
    if given is None:
        columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return columns if mask is None or not by_mask else (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
    given = given.expand_as(ids)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    before = given.masked_fill(~real, -1).cummax(dim=1).values[:, :-1]
    if bool((real[:, 1:] & (given[:, 1:] <= before)).any()):
        raise UserError("Under fastervlm.prune position_ids must rise along each row; pass packed rows one by one.")
    return given


def _columns_to_keep(model: Any, ids: Tensor, encoded: Encoded) -> Tensor:
    """(R, T) bool: all text, and the placeholders of the patches that were kept."""
    placeholder = ids == model.config.image_token_id
    keep = torch.cat(encoded.keep).to(ids.device)
    found = int(placeholder.sum())
    if found != len(keep):
        raise UserError(
            f"The prompts hold {found} image placeholder tokens, but {len(encoded.keep)} pictures need {len(keep)}; "
            "make input_ids and pixel_values in one call of the processor, with one <image> in the text for each picture."
        )
    return (~placeholder).masked_scatter(placeholder, keep)


def _continue(model: Any, call: Call, history: Splice) -> Splice:
    """Prepare a `generate` that goes on from a sealed cache: the known part of the prompt is cut as it was."""
    if call.get("pixel_values") is not None:
        _refuse_new_pictures()
    _refuse_modes_without_history(model, call)
    _check_shapes(call)
    ids, prompt = call["input_ids"], history.for_rows(len(call["input_ids"]))
    more, mask = ids.shape[1] - prompt.ids.shape[1], call.get("attention_mask")
    cached = _cached(call, prompt)
    if prompt.kept + more <= cached or not torch.equal(ids[:, :-more], prompt.ids.to(ids.device)):
        raise UserError(
            "This KV cache was made from a pruned prompt that the new input does not begin with; pass the whole history "
            "as it was returned, followed by the new turn, or start again without past_key_values."
        )
    _refuse_lonely_placeholders(model, ids[:, -more:])
    splice = replace(prompt.grow(more, _guess_mask(model, call) if mask is None else mask), ids=ids)
    call["input_ids"], call["attention_mask"] = splice.short_ids, splice.short_mask
    call["position_ids"] = splice.positions
    return splice


def _refuse_modes_without_history(model: Any, call: Call) -> None:
    """In these modes transformers reads a prompt anew even where a cache holds it already."""
    guess = call.get("assistant_model") is not None or _setting(model, call, "prompt_lookup_num_tokens")
    if guess or _setting(model, call, "use_cache") is False:
        raise UserError(
            "A KV cache cannot be continued with use_cache=False, prompt lookup or an assistant model; "
            "leave that out, or start again without past_key_values."
        )


def _step(model: Any, call: Call, history: Splice) -> None:
    """Prepare a `forward` that goes on from a sealed cache.

    The mask may speak of the unpruned history or of the pruned one. Positions go on as they began, whatever is passed.
    """
    if call.get("pixel_values") is not None:
        _refuse_new_pictures()
    _refuse_lonely_placeholders(model, call.get("input_ids"))
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
    call["position_ids"] = splice.positions[:, -new.shape[1] :]


def _cached(call: Call, prompt: Splice) -> int:
    """How many tokens a sealed cache holds: the whole pruned prompt at least."""
    cached = int(call["past_key_values"].get_seq_length())
    if cached < prompt.kept:
        raise UserError(
            f"This KV cache was cut down to {cached} of the {prompt.kept} tokens of its pruned prompt; "
            "start again without past_key_values."
        )
    return cached


def _prepare_inner(handle: PruneHandle, call: Call) -> None:
    """Prepare a `forward` that the model's own `generate` calls with the features it was given."""
    _blank_guessed_placeholders(handle.model, call)
    if handle.positions == "original" and call.get("past_key_values") is None and call.get("attention_mask") is None:
        call["attention_mask"] = torch.ones_like(call["input_ids"])  # see _shorten


def _refuse_gap_at_the_end(splice: Splice) -> None:
    """transformers numbers what it generates from the last token of the prompt on, so that one has to stay."""
    stays = (splice.order == splice.ids.shape[1] - 1) & ~splice.filler
    if not splice.compact and not bool(stays.any(dim=1).all()):
        raise UserError(
            "With positions='original' a prompt cannot end with a picture whose last patch is dropped; "
            "put text behind the picture or use positions='compact'."
        )


def _refuse_new_pictures() -> NoReturn:
    raise UserError(
        "Pictures cannot be added to a KV cache under fastervlm.prune; pass the whole history with all its pictures, "
        "without past_key_values."
    )


def _refuse_lonely_placeholders(model: Any, ids: Tensor | None) -> None:
    """Refuse image placeholders without a picture, which the stock model would read as a word."""
    if ids is not None and bool((ids == model.config.image_token_id).any()):
        raise UserError("The prompt holds image placeholders but there is no picture; pass pixel_values too.")


def _blank_guessed_placeholders(model: Any, call: Call) -> None:
    """Prompt lookup may guess that the answer goes on with <image>: such guesses, behind the prompt, have no features."""
    ids, pictures = call.get("input_ids"), call["mm_encoder_outputs"].get("image")
    if ids is None or pictures is None or len(ids) != 1:
        return
    placeholder = ids == model.config.image_token_id
    surplus = placeholder & (placeholder.cumsum(dim=1) > sum(len(features) for features in pictures.pooler_output))
    call["input_ids"] = ids.masked_fill(surplus, _pad_id(model))


def _setting(model: Any, call: Call, name: str) -> Any:
    """A generation setting: of the call, of its generation config, or of the model's, in this order."""
    for holder in (call.get(name), getattr(call.get("generation_config"), name, None), getattr(model.generation_config, name)):
        if holder is not None:
            return holder
    return None


def _pad_id(model: Any) -> int:
    pad = _setting(model, {}, "pad_token_id")
    return 0 if pad is None else int(pad)


def _guess_mask(model: Any, call: Call) -> Tensor:
    """A mask for input_ids (R, T): the pads are found as transformers finds them, by their id."""
    ids = call["input_ids"]
    pad, ends = _setting(model, call, "pad_token_id"), _setting(model, call, "eos_token_id")
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return torch.ones_like(ids)
    return ids.ne(pad).long()


def _shift_lengths(model: Any, call: Call, splice: Splice) -> None:
    """`max_length` and `min_length` count the unpruned prompt: take off what it lost."""
    longest, shortest = _setting(model, call, "max_length"), _setting(model, call, "min_length")
    if longest is not None and _setting(model, call, "max_new_tokens") is None:
        if longest <= splice.ids.shape[1]:
            raise UserError(
                f"max_length={longest} leaves no room for an answer behind a prompt of {splice.ids.shape[1]} tokens "
                "(the unpruned prompt counts); set max_new_tokens instead."
            )
        call["max_length"] = longest - splice.removed
    if shortest and _setting(model, call, "min_new_tokens") is None:
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
