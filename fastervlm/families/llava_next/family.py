"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`): an overview and crops, each pruned by its own [CLS] attention.

Dims: S crops of all pictures of a call, N patches of a crop, T tokens of a picture, D language model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.families.base import Encoded
from fastervlm.families.encoding import scored
from fastervlm.families.llava import Llava
from fastervlm.families.llava_next.crops import NEWLINE, CropLayout
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.selection.choice import asked, choose, counts_for

if TYPE_CHECKING:
    from fastervlm.prune_model import PruneHandle


class LlavaNext(Llava):
    """How a LLaVA-NeXT model encodes pictures under pruning.

    Which tokens stay of a picture, newlines among them, depends on which patches are kept of each crop and on un-padding: the
    host reads that from the device.
    """

    one_graph = False

    @staticmethod
    def encode(handle: PruneHandle, call: dict[str, Any]) -> Encoded:
        """Score, choose, and only then finish and project the kept patches of all crops of `call["pixel_values"]`.

        `pixel_values` is (B, crops, 3, H, W) as the processor makes it, or (S, 3, H, W), and `image_sizes` (B, 2) goes with it.
        """
        cuts = _cuts(handle, call)
        windows, groups = [window for cut in cuts for window in cut.windows()], [cut.crops for cut in cuts]
        patches = asked(scored(handle.model, call, _crops(call["pixel_values"], cuts)), call.get("questions"), groups)
        parts: dict[str, Any] = {"grid": patches.grid, "windows": windows, "groups": groups}
        counts = counts_for(handle.budget, patches.scores, pool=handle.anyres.budget == "image", **parts)
        choice = choose(patches, counts, handle.method, windows=windows)
        mask = choice.mask
        table, number = choice.project(handle.model.model.multi_modal_projector)
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
        return Encoded(features, keep, trace)


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


def _newline(inner: Any) -> Tensor:
    """The newline token (D,), wherever accelerate keeps it while the model is not running."""
    if not inner.image_newline.is_meta:
        return inner.image_newline
    from accelerate.utils import align_module_device

    with align_module_device(inner):
        return inner.image_newline.clone()
