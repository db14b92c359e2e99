"""The prompt of a pruned model: checked, and shortened to the visual tokens that were kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from encoders.errors import UserError, UserNote
from fastervlm.families.base import Encoded
from fastervlm.families.pruning import Pruning
from fastervlm.generation.host import Host
from fastervlm.generation.inputs import (
    NOUNS,
    PIXELS,
    Call,
    check_rising,
    check_shapes,
    cut_others,
    guess_mask,
    pad_id,
    pictures_in,
    placeholders,
    refuse_lonely_placeholders,
    refuse_new_pictures,
)
from fastervlm.generation.kv_cache import cache_in
from fastervlm.generation.splice import Splice, padded_right
from fastervlm.selection.choice import not_finite
from fastervlm.selection.kept import waits


def shorten(host: Host, pruning: Pruning, call: Call, *, by_mask: bool) -> tuple[Splice, Callable[[], None]]:
    """Encode the pictures of `call`, and put the pruned prompt and the kept features in their place.

    On a device the prompts are read once, before the tower starts, and nothing waits after that where each picture keeps a
    count. One prompt that shows pictures, or clips, alone is not read at all: how many columns stay is known from shapes. If
    its placeholders do not fit, they are blanked, so that the stock model finds none for the features and refuses them. The
    caller's own position ids are read, and positions="original" has `generate` read the last column.

    Returns:
        What stays of the prompts, and a check, which waits for a device, that raises a UserError if their placeholders do not
        fit the pictures or what was made of these is not finite.
    """
    if cache_in(call) is not None and cache_in(call).get_seq_length() > 0:
        refuse_new_pictures()
    check_shapes(call)
    ids, mask = call["input_ids"], call.get("attention_mask")
    _refuse_unknown_pictures(host, call)
    if by_mask and mask is None:
        mask = guess_mask(host.model, call)
    kinds = pictures_in(call)
    unread = len(ids) == len(kinds) == 1 and waits(ids)
    seen, right = (ids, False) if unread else (ids.cpu(), mask is not None and padded_right(mask.cpu()))
    if not unread:
        refuse_lonely_placeholders(host.model, seen, kinds)
    first = 0 if by_mask else host.family.first_position(host.model)
    numbers, axes = _numbers(call, mask, first, by_mask=by_mask), host.family.axes(host.model, call, mask)
    encoded = _encoded(host, pruning, call)
    needs = {kind: [len(keep) for keep in found.keep] for kind, found in encoded.items()}
    check = partial(_check, host, pruning, seen, encoded)
    if not unread:
        check_placeholders(host.model, seen, needs, host.family.loaded(pruning))
    keep, lengths = _columns_to_keep(host.model, ids, encoded), _lengths(host.model, seen, encoded)
    compact = pruning.positions == "compact" or axes is not None
    length = None if lengths is None else max(lengths)
    splice = Splice.of(ids, mask, keep, numbers, right=right, length=length, pad=pad_id(host.model), compact=compact, axes=axes)
    for name in host.family.inputs:
        call.pop(name, None)
    call["input_ids"] = _blanked_unless_fitting(host.model, splice, needs) if unread else splice.short_ids
    call["mm_encoder_outputs"] = {
        kind: host.family.encoder_output(host.model, found.features, kind) for kind, found in encoded.items()
    }
    # Without a mask transformers takes gaps in the positions for borders of packed rows.
    if (
        mask is not None
        or not compact
        or axes is not None
        or (bool(splice.filler.any()) if lengths is None else min(lengths) < max(lengths))
    ):
        call["attention_mask"] = splice.short_mask
    call["position_ids"] = splice.positions
    cut_others(call, splice)
    host.trace, host.lengths = _traces(host.model, seen, encoded)
    return splice, check


def _encoded(host: Host, pruning: Pruning, call: Call) -> dict[str, Encoded]:
    """What is shown at each run of placeholders, by their kind."""
    return {
        kind: found if call.get(f"{kind}_index") is None else found.shown(call[f"{kind}_index"], kind)
        for kind, found in host.shown(pruning, call).items()
    }


def _numbers(call: Call, mask: Tensor | None, first: int, *, by_mask: bool) -> Tensor:
    """Position ids (R, T) of the unpruned prompt: the caller's, or as transformers would count, unmasked tokens or columns.

    They count from 0, where those of the caller count from `first`.
    """
    ids, given = call["input_ids"], call.get("position_ids")
    if given is None:
        columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return columns if mask is None or not by_mask else (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
    given = given.expand_as(ids) - first
    check_rising(given, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool())
    return given


def _check(host: Host, pruning: Pruning, ids: Tensor, encoded: dict[str, Encoded]) -> None:
    """Refuse prompts (R, T) that do not fit the pictures, and pictures of which the tower made no numbers."""
    needs = {kind: [len(keep) for keep in found.keep] for kind, found in encoded.items()}
    check_placeholders(host.model, ids, needs, host.family.loaded(pruning))
    for kind, found in encoded.items():
        for place, features in enumerate(found.features):
            if not bool(features.isfinite().all()):
                raise UserError(not_finite(NOUNS[kind], place, len(found.features)))


def tell_of_context(host: Host, splice: Splice) -> None:
    """Warn, once each, of prompts longer than the model was made for, and of those that fit because they were pruned."""
    context = getattr(host.model.config.get_text_config(), "max_position_embeddings", None)
    whole = splice.ids.shape[1]
    if context is None or whole <= context:
        return
    fits = splice.compact and splice.kept <= context
    if fits not in host.told:
        host.told.add(fits)
        warnings.warn(
            f"This prompt of {whole} tokens fits into the model's context of {context} because pruning leaves {splice.kept}."
            if fits
            else f"This prompt has {whole} tokens, {splice.kept} of them after pruning, but the model's context is {context}; "
            "answers may be poor, so keep fewer tokens, shorten the prompt, or number compactly (positions='compact').",
            UserNote,
            stacklevel=4,
        )


def check_placeholders(model: Any, ids: Tensor, needs: dict[str, list[int]], loaded: str) -> None:
    """Refuse prompts (R, T) whose placeholders are not those that the pictures of each kind need, each its own number.

    `loaded` is how the fitting processor is loaded, to be put behind its name.
    """
    refuse_lonely_placeholders(model, ids, list(needs))
    for kind, counts in needs.items():
        found, noun = int(placeholders(model, ids, kind).sum()), NOUNS[kind]
        if found != sum(counts):
            raise UserError(
                f"The prompts hold {found} {kind} placeholder tokens, but {len(counts)} {noun}s need {sum(counts)}; make "
                f"input_ids and {PIXELS[kind][0]} in one call of the processor{loaded}, with one <{kind}> for each {noun}."
            )


def _blanked_unless_fitting(model: Any, splice: Splice, needs: dict[str, list[int]]) -> Tensor:
    """The pruned prompt (1, L), or only pads if its placeholders are not those that the pictures need; nothing waits."""
    fits = [placeholders(model, splice.ids, kind).sum() == sum(needs.get(kind, ())) for kind in PIXELS]
    fitting = torch.stack(fits).all()
    if torch.compiler.is_compiling() or os.environ.get("TRANSFORMERS_DISABLE_TORCH_CHECK") == "1":
        # The stock model checks nothing then.
        torch._assert_async(fitting, "The placeholders of the prompt do not fit its pictures.")
    return splice.short_ids.masked_fill(~fitting, splice.pad)


def _columns_to_keep(model: Any, ids: Tensor, encoded: dict[str, Encoded]) -> Tensor:
    """(R, T) bool: all text, and the placeholders of the patches that were kept."""
    keep = torch.ones_like(ids, dtype=torch.bool)
    for kind, shown in encoded.items():
        placeholder, stays = placeholders(model, ids, kind), torch.cat(shown.keep).to(ids.device)
        place = (placeholder.flatten().cumsum(dim=0) - 1).clamp(min=0, max=len(stays) - 1)
        keep = keep & (~placeholder | stays[place].view_as(ids))
    return keep


def _lengths(model: Any, ids: Tensor, encoded: dict[str, Encoded]) -> list[int] | None:
    """How many columns of each row of ids (R, T) stay; None if the placeholders of a picture stand in several rows.

    One row is not read.
    """
    lost = [0] * len(ids)
    for kind, shown in encoded.items():
        needs = [len(keep) for keep in shown.keep]
        gone = [need - len(x) for need, x in zip(needs, shown.features, strict=True)]
        if len(ids) == 1:
            lost[0] += sum(gone)
            continue
        rows, ends = placeholders(model, ids, kind).nonzero()[:, 0], torch.tensor(needs).cumsum(dim=0)
        if not torch.equal(rows[ends - torch.tensor(needs)], rows[ends - 1]):
            return None
        for row, count in zip(rows[ends - 1].tolist(), gone, strict=True):
            lost[row] += count
    return [ids.shape[1] - count for count in lost]


def _traces(model: Any, ids: Tensor, encoded: dict[str, Encoded]) -> tuple[list[Any], list[int]]:
    """What was kept at each run of placeholders, in the order of the prompts (R, T), and how many those are."""
    if len(encoded) == 1:
        (shown,) = encoded.values()
        return shown.trace, [len(keep) for keep in shown.keep]
    found: list[tuple[int, Any, int]] = []
    for kind, shown in encoded.items():
        places = placeholders(model, ids, kind).flatten().nonzero().flatten().tolist()
        firsts = accumulate((len(keep) for keep in shown.keep[:-1]), initial=0)
        found += zip((places[first] for first in firsts), shown.trace, map(len, shown.keep), strict=True)
    found.sort(key=lambda each: each[0])
    return [trace for _, trace, _ in found], [length for *_, length in found]


def _refuse_unknown_pictures(host: Host, call: Call) -> None:
    host.family.refuse_other_kinds(call)
    for name in (name for names in PIXELS.values() for name in names):
        if call.get(name) is not None and name not in host.family.inputs:
            raise UserError(f"A {type(host.model).__name__} has no use for {name}; leave it out.")
