"""`generate` and `forward` of a pruned model: encode and choose, shorten the prompt, run the stock method, restore.

Both hand the stock model a shorter prompt and the kept features ready-made (`mm_encoder_outputs`), which is the way
transformers' own `generate` passes pictures on; beams, caches and decoding loops are then entirely its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders import UserError
from fastervlm.history import opened, seal
from fastervlm.llava import Encoded
from fastervlm.splice import Splice

if TYPE_CHECKING:
    from fastervlm.prune import PruneHandle

Call = dict[str, Any]


@torch.no_grad()
def generate(handle: PruneHandle, call: Call) -> Any:
    """`model.generate(**call)` with pruned pictures; what it returns begins with the unpruned prompt."""
    if call.get("inputs") is not None:
        call["input_ids"] = call.pop("inputs")
    past = call.get("past_key_values")
    with opened(past) as history:
        if history is not None:
            splice = _continue(handle, call, history)
        elif call.get("pixel_values") is not None:
            call["attention_mask"] = _mask(handle.model, call)
            splice = _shorten(handle, call, from_mask=True)
        else:
            _refuse_lonely_placeholders(handle.model, call)
            return handle.original("generate")(**call)
        _shift_lengths(handle.model, call, splice)
        if call.get("streamer") is not None:
            call["streamer"] = _WholePrompt(call["streamer"], splice)
        output = handle.original("generate")(**call)
    made = past if past is not None else getattr(output, "past_key_values", None)
    if history is None and isinstance(made, Cache):
        seal(made, splice)
    if isinstance(output, Tensor):
        return splice.restore(output)
    output.sequences = splice.restore(output.sequences)
    return output


def forward(handle: PruneHandle, call: Call) -> Any:
    """`model(**call)` with pruned pictures; logits have the pruned length, and labels are cut alike."""
    past = call.get("past_key_values")
    with opened(past) as history:
        if history is not None:
            _step(handle, call, history)
            return handle.original("forward")(**call)
        if call.get("pixel_values") is None:
            if call.get("mm_encoder_outputs"):
                _blank_guessed_placeholders(handle.model, call)
                if handle.positions == "original" and past is None and call.get("attention_mask") is None:  # see _shorten
                    call["attention_mask"] = torch.ones_like(call["input_ids"])
            elif past is None or past.get_seq_length() == 0:
                _refuse_lonely_placeholders(handle.model, call)
            return handle.original("forward")(**call)
        splice = _shorten(handle, call, from_mask=False)
        output = handle.original("forward")(**call)
    for part in output.values() if isinstance(output, dict) else output:
        if isinstance(part, Cache):
            seal(part, splice)
    return output


def _shorten(handle: PruneHandle, call: Call, *, from_mask: bool) -> Splice:
    """Encode the pictures of `call`, and put the pruned prompt and the kept features in their place."""
    ids, mask = call.get("input_ids"), call.get("attention_mask")
    if ids is None or call.get("inputs_embeds") is not None:
        raise UserError(
            "A pruned model finds its pictures by the placeholders in input_ids; pass input_ids, not inputs_embeds."
        )
    if mask is not None and mask.dim() != 2:
        raise UserError(f"A pruned model needs an attention mask of shape (rows, tokens), not {tuple(mask.shape)}.")
    encoded = handle.family.encode(handle.model, handle.budget, handle.method, call)
    splice = Splice.of(ids, mask, _columns_to_keep(handle.model, ids, encoded), _pad_id(handle.model))
    positions = splice.positions(call.get("position_ids"), compact=handle.positions == "compact", from_mask=from_mask)
    for name in handle.family.inputs:
        call.pop(name, None)
    call["input_ids"] = splice.short_ids
    call["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=encoded.features)}  # type: ignore[arg-type]
    # Without a mask transformers takes gaps in the positions for borders of packed rows.
    if mask is not None or handle.positions == "original" or bool(splice.filler.any()):
        call["attention_mask"] = splice.short_mask
    if positions is not None:
        call["position_ids"] = positions
    if call.get("labels") is not None:
        call["labels"] = splice.take_labels(call["labels"])
    handle.trace = encoded.trace
    return splice


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


def _continue(handle: PruneHandle, call: Call, history: Splice) -> Splice:
    """Prepare a `generate` that goes on from a sealed cache: the known part of the prompt is cut as it was."""
    _refuse_new_pictures(call)
    known = history.for_rows(len(call["input_ids"]))
    splice = known.extend(call["input_ids"], call.get("attention_mask"))
    _refuse_lonely_placeholders(handle.model, {"input_ids": splice.ids[:, known.ids.shape[1] :]})
    call["input_ids"], call["attention_mask"] = splice.short_ids, splice.short_mask
    positions = splice.positions(None, compact=handle.positions == "compact", from_mask=True)
    if positions is not None:
        call["position_ids"] = positions
    return splice


def _step(handle: PruneHandle, call: Call, history: Splice) -> None:
    """Prepare a `forward` that goes on from a sealed cache: mask and positions may speak of the unpruned history."""
    _refuse_new_pictures(call)
    _refuse_lonely_placeholders(handle.model, call)
    new = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    splice = history.for_rows(len(new))
    length = call["past_key_values"].get_seq_length() + new.shape[1]
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    if mask is not None and mask.shape[-1] == length + splice.removed:
        call["attention_mask"] = splice.extend_mask(mask)
    elif mask is not None and mask.shape[-1] != length:
        raise UserError(
            f"The attention mask covers {mask.shape[-1]} tokens, but the history has {length + splice.removed} "
            f"({length} of them kept); pass a mask over the whole history, or none."
        )
    if handle.positions == "compact" and positions is not None:
        call["position_ids"] = positions - splice.removed_from_row
    elif handle.positions == "original" and positions is None:
        columns = torch.arange(length - new.shape[1], length, device=new.device) + splice.removed
        call["position_ids"] = columns.expand(len(new), -1)


def _refuse_new_pictures(call: Call) -> None:
    if call.get("pixel_values") is not None:
        raise UserError(
            "Pictures cannot be added to the KV cache of a pruned prompt; pass the whole history with all its pictures, "
            "without past_key_values."
        )


def _refuse_lonely_placeholders(model: Any, call: Call) -> None:
    """Refuse image placeholders without a picture, which the stock model would read as a word."""
    ids = call.get("input_ids")
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


def _mask(model: Any, call: Call) -> Tensor:
    """The caller's attention mask; without one the pads are found as transformers finds them, by their id."""
    ids, mask = call["input_ids"], call.get("attention_mask")
    if mask is not None:
        return mask
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
