"""From pixels to kept and projected tokens, of pictures that are cut into crops.

Dims: S crops of all pictures of a call, N patches of a crop, T tokens of a picture, D language model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded
from fastervlm.families.llava_next.crops import NEWLINE, CropLayout, cut
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.pruning import Pruning
from fastervlm.selection.choice import Choice, asked, choose, counts_for


def encode_crops(
    model: Any, pruning: Pruning, patches: ScoredPatches, cuts: Sequence[CropLayout], questions: Sequence[str] | None
) -> Encoded:
    """Choose among the scored patches of all crops, and only then finish and project the kept ones.

    Args:
        model: with a `multi_modal_projector` and an `image_newline`.
        pruning: whose settings are an `Anyres`.
        patches: S rows, crop after crop, picture after picture.
        cuts: how each picture was cut.
        questions: what is asked about each picture.
    """
    settings: Anyres = pruning.settings
    windows, groups = [window for each in cuts for window in each.windows()], [each.crops for each in cuts]
    patches = asked(patches, questions, groups)
    parts: dict[str, Any] = {"grid": patches.grid, "windows": windows, "groups": groups}
    counts = counts_for(pruning.budget, patches.scores, pool=settings.budget == "image", **parts)
    choice = choose(patches, counts, pruning.method, windows=windows)
    return arranged(model, pruning, [(range(len(windows)), choice)], cuts)


def arranged(
    model: Any, pruning: Pruning, chosen: Sequence[tuple[Sequence[int], Choice]], cuts: Sequence[CropLayout]
) -> Encoded:
    """The kept tokens of all crops in the order of the prompt, with their newlines; see `encode_crops`.

    Args:
        model: with a `multi_modal_projector` and an `image_newline`.
        pruning: whose settings are an `Anyres`.
        chosen: choices, each with the numbers of its rows among all S; crops that are in none keep nothing.
        cuts: how each picture was cut.
    """
    settings: Anyres = pruning.settings
    table, number, mask, scores = _of_all_crops(model, chosen, sum(each.crops for each in cuts))
    features, keep, trace = [], [], []
    newline = newline_of(model.model).to(table)
    first = 0
    for each in cuts:
        crops = slice(first, first + each.crops)
        stays = each.keep(mask[crops].flatten(), settings.newline)
        tokens = each.source.to(stays.device)[stays]
        rows = table[number[crops].flatten()[tokens.clamp(min=0)].to(table.device)]
        features.append(torch.where((tokens == NEWLINE)[:, None].to(table.device), newline, rows))
        keep.append(stays)
        trace.append(CropsTrace(scores[crops], mask[crops], tokens, each, settings.layout))
        first = crops.stop
    return Encoded(features, keep, trace)


def _of_all_crops(
    model: Any, chosen: Sequence[tuple[Sequence[int], Choice]], total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The projected tokens (R, D) of all choices, and of each patch (S, N) its row there, whether it is kept, and its score."""
    tables: list[Tensor] = []
    patches = chosen[0][1].patches.scores
    number = torch.zeros(total, patches.shape[1], dtype=torch.long, device=patches.device)
    mask, scores = torch.zeros_like(number, dtype=torch.bool), torch.zeros_like(number, dtype=patches.dtype)
    for rows, choice in chosen:
        places = torch.tensor(rows, device=number.device)
        table, own = choice.project(model.model.multi_modal_projector)
        number[places] = own + sum(map(len, tables))
        mask[places], scores[places] = choice.mask, choice.patches.scores.detach().clamp(min=0)
        tables.append(table)
    return tables[0] if len(tables) == 1 else torch.cat(tables), number, mask, scores


def outside(cuts: Sequence[CropLayout]) -> Tensor:
    """(S, N) bool: the patches of all crops that un-padding takes away."""
    found = [torch.ones(each.side, each.side, dtype=torch.bool) for each in cuts for _ in range(each.crops)]
    for crop, (top, bottom, left, right) in zip(found, (window for each in cuts for window in each.windows()), strict=True):
        crop[top:bottom, left:right] = False
    return torch.stack(found).flatten(1)


def cuts_of(model: Any, settings: Anyres, call: Mapping[str, Any]) -> list[CropLayout]:
    """How each picture of the call is cut."""
    sizes = call.get("image_sizes")
    if sizes is None:
        raise UserError("LLaVA-NeXT needs image_sizes beside pixel_values; pass all that the processor returns.")
    pictures = call["pixel_values"]
    sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    if not all(isinstance(size, Sequence) and len(size) == 2 and min(size) > 0 for size in sizes):
        raise UserError(
            "image_sizes must hold the height and the width of each picture in pixels; pass what the processor returns."
        )
    if pictures.dim() == 5 and len(sizes) != len(pictures):
        raise UserError(
            f"image_sizes has {len(sizes)} rows for {len(pictures)} pictures; pass both from one call of the processor."
        )
    return [cut((int(height), int(width)), model.config, settings.layout) for height, width in sizes]


def crops_of(pixel_values: Tensor, cuts: list[CropLayout]) -> Tensor:
    """(S, 3, H, W): the crops of all pictures, without those that fill up a batch."""
    counts, side = [each.crops for each in cuts], cuts[0].crop
    if pixel_values.shape[-2:] != (side, side):
        raise UserError(
            f"This model reads crops of {side} x {side} pixels, but pixel_values is {tuple(pixel_values.shape)}; "
            "use its own processor."
        )
    if pixel_values.dim() == 5 and pixel_values.shape[1] >= max(counts):
        return torch.cat([crops[:count] for crops, count in zip(pixel_values, counts, strict=True)])
    if pixel_values.dim() == 4 and len(pixel_values) == sum(counts):
        return pixel_values
    raise UserError(
        f"pixel_values of shape {tuple(pixel_values.shape)} do not hold the {sum(counts)} crops of {len(cuts)} pictures; load "
        "model and processor together by fastervlm.load(..., anyres=...), with the same anyres as for prune."
    )


def newline_of(inner: Any) -> Tensor:
    """The newline token (D,), wherever accelerate keeps it while the model is not running."""
    if not inner.image_newline.is_meta:
        return inner.image_newline
    from accelerate.utils import align_module_device

    with align_module_device(inner):
        return inner.image_newline.clone()
