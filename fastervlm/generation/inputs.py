"""What a call of a model brings: ids, masks, pixels and settings, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.families.base import PIXELS
from fastervlm.generation.splice import Splice

Call = dict[str, Any]

# Cut by whoever shortens a prompt, or of a length of their own, which may be the prompt's by chance.
_NOT_CUT = (
    *("input_ids", "attention_mask", "position_ids"),
    *("selector_ids", "negative_prompt_ids", "negative_prompt_attention_mask"),
)
INSIDE = "_fastervlm_inllm"  # where a model has what prunes inside its language model
NOUNS = {"image": "picture", "video": "video"}


def pictures_in(call: Call) -> list[str]:
    """The kinds of pictures whose pixels a call brings, "image" and "video"."""
    return [kind for kind, names in PIXELS.items() if any(call.get(name) is not None for name in names)]


def placeholders(model: Any, ids: Tensor, kind: str) -> Tensor:
    """Where ids (R, T) hold the placeholder of a kind; nowhere for a model that has none."""
    return ids == getattr(model.config, f"{kind}_token_id", -1)


def visual(model: Any, ids: Tensor) -> Tensor:
    """Where ids (R, T) hold a placeholder of any kind."""
    return placeholders(model, ids, "image") | placeholders(model, ids, "video")


def check_shapes(call: Call) -> None:
    """Refuse a call without `input_ids` (R, T), or with a mask, labels or positions of another shape."""
    ids = call.get("input_ids")
    for name in (name for names in PIXELS.values() for name in names):
        if call.get(name) is not None and not isinstance(call[name], Tensor):
            raise UserError(f"{name} must be one tensor; call the processor with return_tensors='pt'.")
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


def cut_others(call: Call, splice: Splice) -> None:
    """Cut all else that is as long as the prompt like the prompt; what cannot be cut is refused, never passed on as it is.

    That is labels, and tensors with a row for each prompt and a value for each of its tokens such as `token_type_ids`.
    """
    shape, length = tuple(splice.ids.shape), splice.ids.shape[1]
    for name, given in call.items():
        if name in _NOT_CUT or not isinstance(given, Tensor) or length not in given.shape:
            continue
        if given.shape[:2] != shape:
            raise UserError(
                f"{name} of shape {tuple(given.shape)} cannot be shortened with a prompt of shape {shape} by fastervlm.prune; "
                "leave it out, or pass a value for each token, in rows like those of input_ids."
            )
        cut = {"labels": splice.take_labels, "shift_labels": splice.take_shift_labels}.get(name, splice.take)
        call[name] = cut(given)


def check_rising(numbers: Tensor, real: Tensor) -> None:
    """Refuse position ids (R, T) that do not rise along each row, at the columns where real (R, T) is true."""
    before = numbers.masked_fill(~real, -1).cummax(dim=1).values[:, :-1]
    if bool((real[:, 1:] & (numbers[:, 1:] <= before)).any()):
        raise UserError("Under fastervlm.prune position_ids must rise along each row; pass packed rows one by one.")


def refuse_new_pictures() -> NoReturn:
    """Refuse pictures beside a KV cache that holds something already."""
    raise UserError(
        "Pictures cannot be added to a KV cache under fastervlm.prune; pass the whole history with all its pictures, "
        "without the KV cache."
    )


def refuse_lonely_placeholders(model: Any, ids: Tensor | None, shown: Sequence[str] = ()) -> None:
    """Refuse placeholders of a kind that is not among the shown ones, which the stock model would read as words."""
    for kind, names in PIXELS.items():
        if ids is None or kind in shown or getattr(model.config, f"{kind}_token_id", None) is None:
            continue
        if bool(placeholders(model, ids, kind).any()):
            raise UserError(f"The prompt holds {kind} placeholders but there is no {NOUNS[kind]}; pass {names[0]} too.")


def guess_mask(model: Any, call: Call) -> Tensor:
    """A mask for input_ids (R, T): the pads are found as transformers finds them, by their id."""
    ids = call["input_ids"]
    pad, ends = setting(model, call, "pad_token_id"), setting(model, call, "eos_token_id")
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return torch.ones_like(ids)
    return ids.ne(pad).long()


def setting(model: Any, call: Call, name: str) -> Any:
    """A generation setting: of the call, of its generation config, or of the model's, in this order."""
    for holder in (
        call.get(name),
        getattr(call.get("generation_config"), name, None),
        getattr(model.generation_config, name, None),
    ):
        if holder is not None:
            return holder
    return None


def sequences(model: Any, call: Call) -> int:
    """How many sequences `generate` writes at a time for each prompt: beams or answers."""
    return max(setting(model, call, "num_beams") or 1, setting(model, call, "num_return_sequences") or 1)


def pad_id(model: Any) -> int:
    """The token id that fills up rows."""
    pad = setting(model, {}, "pad_token_id")
    return 0 if pad is None else int(pad)
