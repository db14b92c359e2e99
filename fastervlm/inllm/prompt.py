"""What a pass through the language model reads: which columns are text, pads and visual tokens, and where its prompt ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.generation.inputs import PIXELS, check_rising, pad_id, pictures_in, placeholders, refuse_lonely_placeholders
from fastervlm.generation.kv_cache import cache_in
from fastervlm.generation.splice import padded_right

_LENGTH = "_fastervlm_prompt_length"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts that is read for the first time. Dims: R rows, T columns.

    Attributes:
        ids: (R, T) token ids, without placeholders among guesses, for which there are no features.
        real: (R, T) bool, false at pads.
        visual: (R, T) bool, true at the tokens of pictures and videos.
        last: (R,) int64, the column of the prompt's last token.
        guesses: how many columns behind the prompt are guesses of assisted generation, to be confirmed or cut off.
        right: whether the batch is padded on the right.
        selector: (R, S) token ids of text to choose by, or None.
        pad: the id of pads in it.
        embed: the language model's input embeddings.
    """

    ids: Tensor
    real: Tensor
    visual: Tensor
    last: Tensor
    guesses: int
    right: bool
    selector: Tensor | None
    pad: int
    embed: Any

    @classmethod
    def of(cls, model: Any, call: dict[str, Any], selector: Tensor | None, who: str) -> Prompt:
        """The prompt of a call of the model that merges pictures and text.

        Raises:
            UserError: no input_ids, a mask of another shape, rows packed into one, placeholders without pictures.
        """
        ids, mask = call.get("input_ids"), call.get("attention_mask")
        if ids is None:
            raise UserError(f"{who} finds pictures by the placeholders in input_ids; pass input_ids, not inputs_embeds.")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise UserError(
                f"Under {who} attention_mask must have the shape of input_ids, {tuple(ids.shape)}; pass the processor's mask."
            )
        if selector is not None and (selector.dim() != 2 or len(selector) != len(ids)):
            raise UserError(f"selector_ids must have a row for each of the {len(ids)} prompts, padded to (R, S).")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if call.get("position_ids") is not None:
            check_rising(call["position_ids"].expand_as(ids), real)
        end = _prompt_length(cache_in(call), ids.shape[1], who)
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = columns.where(real & (columns < end), -1).amax(dim=1).clamp(min=0)
        visual = _visual(model, ids, call) & real
        if end < ids.shape[1]:
            ids, visual = ids.masked_fill(visual & (columns >= end), pad_id(model)), visual & (columns < end)
        return cls(
            ids,
            real,
            visual,
            last,
            ids.shape[1] - end,
            padded_right(real),
            selector,
            pad_id(model),
            model.get_input_embeddings(),
        )


def has_pictures(call: dict[str, Any]) -> list[str]:
    """The kinds of pictures that a call brings, "image" and "video", as pixels or encoded already."""
    ready, raw = call.get("mm_encoder_outputs") or {}, pictures_in(call)
    return [kind for kind in PIXELS if kind in raw or ready.get(kind) is not None]


def _visual(model: Any, ids: Tensor, call: dict[str, Any]) -> Tensor:
    kinds = has_pictures(call)
    refuse_lonely_placeholders(model, ids, kinds)
    return torch.stack([torch.zeros_like(ids, dtype=torch.bool), *(placeholders(model, ids, kind) for kind in kinds)]).any(
        dim=0
    )


def remember_prompt_length(cache: Any, length: int) -> None:
    """Note on an empty cache how long the prompt is that `generate` is about to read into it."""
    setattr(cache, _LENGTH, length)


def _prompt_length(cache: Any, length: int, who: str) -> int:
    """How many of the first `length` tokens are the prompt: all of them, unless `generate` said otherwise."""
    known = vars(cache).pop(_LENGTH, length) if cache is not None else length
    if known > length:
        raise UserError(f"{who} has to read a prompt at once; leave out prefill_chunk_size.")
    return known
