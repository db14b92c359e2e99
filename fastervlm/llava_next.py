"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`): an overview and crops, each pruned by its own [CLS] attention.

Dims: S crops of all pictures of a call, N patches of a crop, T tokens of a picture, D language model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.anyres import NEWLINE, CropLayout
from fastervlm.kept import KeptTokens
from fastervlm.llava import Encoded, Llava, chosen, scored
from fastervlm.trace import CropsTrace

if TYPE_CHECKING:
    from fastervlm.prune import PruneHandle

Window = tuple[int, int, int, int]


class LlavaNext(Llava):
    """How a LLaVA-NeXT model encodes pictures under pruning."""

    @staticmethod
    def encode(handle: PruneHandle, call: dict[str, Any]) -> Encoded:
        """Score, choose, and only then finish and project the kept patches of all crops of `call["pixel_values"]`.

        `pixel_values` is (B, crops, 3, H, W) as the processor makes it, or (S, 3, H, W), and `image_sizes` (B, 2) goes with it.
        """
        cuts = _cuts(handle, call)
        patches = scored(handle.model, call, _crops(call["pixel_values"], cuts))
        windows = [window for cut in cuts for window in cut.windows()]
        counts = _counts(handle, patches, cuts, windows)
        mask, counts = _mask(handle, patches, windows, counts)
        table, number = _project(handle.model, patches, mask, all(map(_is_full, windows, counts)), max(counts))
        features, keep, trace = [], [], []
        newline = _newline(handle.model.model).to(table)
        first = 0
        for cut in cuts:
            crops = slice(first, first + cut.crops)
            stays = cut.keep(mask[crops].flatten(), handle.anyres.newline)
            tokens = cut.source.to(stays.device)[stays]
            rows = table[number[crops].flatten()[tokens.clamp(min=0)].to(table.device)]
            features.append(torch.where((tokens == NEWLINE)[:, None].to(table.device), newline, rows))
            keep.append(stays)
            trace.append(CropsTrace(patches.scores[crops].detach(), mask[crops], tokens, cut, handle.anyres.anyres))
            first = crops.stop
        encoded = Encoded(features, keep, trace)
        return encoded if call.get("image_index") is None else encoded.shown(call["image_index"])


def _cuts(handle: PruneHandle, call: dict[str, Any]) -> list[CropLayout]:
    """How each picture of the call is cut."""
    sizes, config = call.get("image_sizes"), handle.model.config
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
    cut = {"native": CropLayout.native, "paper": CropLayout.paper}[handle.anyres.anyres]
    crop = config.vision_config.image_size
    side = crop // config.vision_config.patch_size
    return [cut((int(height), int(width)), config.image_grid_pinpoints, crop, side) for height, width in sizes]


def _crops(pixel_values: Tensor, cuts: list[CropLayout]) -> Tensor:
    """(S, 3, H, W): the crops of all pictures, without those that fill up a batch."""
    counts, side = [cut.crops for cut in cuts], cuts[0].crop
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


def _counts(handle: PruneHandle, patches: ScoredPatches, cuts: list[CropLayout], windows: list[Window]) -> list[int]:
    """How many patches to keep of each crop: K, of which a fraction is one of a whole crop, but never more than take part."""
    areas = [_area(window) for window in windows]
    counts = [min(handle.budget.resolve(patches.scores.shape[1]), area) for area in areas]
    if handle.anyres.budget == "crop":
        return counts
    shared: list[int] = []
    for cut in cuts:
        crops = slice(len(shared), len(shared) + cut.crops)
        scores = [_inside(row, window) for row, window in zip(patches.scores[crops], windows[crops], strict=True)]
        best = KeptTokens.top(torch.cat(scores)[None], sum(counts[crops])).index[0]
        ends = torch.tensor(list(accumulate(areas[crops])), device=best.device)
        shared += torch.bincount(torch.searchsorted(ends, best, right=True), minlength=cut.crops).tolist()
    return shared


def _mask(handle: PruneHandle, patches: ScoredPatches, windows: list[Window], counts: list[int]) -> tuple[Tensor, list[int]]:
    """(S, N) bool, the patches that the method keeps, and how many of each crop; a method may keep others than `counts` says.

    It is called once for all crops of one window and count.
    """
    mask = torch.zeros_like(patches.scores, dtype=torch.bool)
    kept = [0] * len(counts)
    groups: dict[tuple[Window, int], list[int]] = {}
    for crop, group in enumerate(zip(windows, counts, strict=True)):
        groups.setdefault(group, []).append(crop)
    for (window, count), crops in groups.items():
        if count:
            rows = torch.tensor(crops, device=mask.device)
            part, places = _part(patches, rows, window)
            index = chosen(handle, part, count).index.to(mask.device)
            mask[rows[:, None], places[index]] = True
            for crop in crops:
                kept[crop] = index.shape[1]
    return mask, kept


def _part(patches: ScoredPatches, rows: Tensor, window: Window) -> tuple[ScoredPatches, Tensor]:
    """Some crops, cut to a window of their patches, as patches that know of no others; and the window's places (n,)."""
    total, (top, bottom, left, right) = patches.scores.shape[1], window
    places = _inside(torch.arange(total, device=rows.device), window)

    def finish(index: Tensor | None) -> Tensor:
        whole = torch.zeros(
            len(patches.scores), len(places) if index is None else index.shape[1], dtype=torch.long, device=rows.device
        )
        whole[rows] = places if index is None else places[index.to(rows.device)]
        return patches.features(whole)[rows]

    attention = patches.cls_attention[rows][:, :, places]
    part = replace(
        patches,
        cls_attention=attention,
        grid=(bottom - top, right - left),
        image_key=patches.image_key[rows],
        finish=finish,
    )
    return part, places


def _project(model: Any, patches: ScoredPatches, mask: Tensor, everything: bool, most: int) -> tuple[Tensor, Tensor]:
    """The kept patches, projected (rows, D), and for each patch its row, (S, N); rows of dropped patches mean nothing.

    Where `everything` that takes part is kept, all patches go through as in the stock model, and so with its rounding.
    """
    projector = model.model.multi_modal_projector
    if everything:
        table = projector(patches.features()).flatten(0, 1)
        return table, torch.arange(mask.numel(), device=mask.device).view_as(mask)
    index = mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    features = patches.features(index)
    table = projector(features[mask.gather(1, index).to(features.device)])
    return table, (mask.flatten().long().cumsum(0) - 1).clamp(min=0).view_as(mask)


def _area(window: Window) -> int:
    top, bottom, left, right = window
    return max(0, bottom - top) * max(0, right - left)


def _is_full(window: Window, count: int) -> bool:
    return _area(window) == count


def _inside(row: Tensor, window: Window) -> Tensor:
    """What of row (N,) lies in a window of a square of patches."""
    side = round(len(row) ** 0.5)
    top, bottom, left, right = window
    return row.view(side, side)[top:bottom, left:right].flatten()


def _newline(inner: Any) -> Tensor:
    """The newline token (D,), wherever accelerate keeps it while the model is not running."""
    if not inner.image_newline.is_meta:
        return inner.image_newline
    from accelerate.utils import align_module_device

    with align_module_device(inner):
        return inner.image_newline.clone()
