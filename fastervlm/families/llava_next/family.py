"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`): an overview and crops, each pruned by its own [CLS] attention.

Dims: S crops of all pictures of a call, N patches of a crop, T tokens of a picture, D language model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import INPUTS, check_about_pictures, check_tower, scored
from fastervlm.families.llava_next.crops import NEWLINE, CropLayout, cut
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.processing import complete, placeholders, square
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.choice import asked, choose, counts_for
from fastervlm.selection.schedule import refuse_schedule

_CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # in crops, (high, wide), of the published checkpoints


class LlavaNext(Family):
    """How a LLaVA-NeXT model encodes pictures under pruning.

    Which tokens stay of a picture, newlines among them, depends on which patches are kept of each crop and on un-padding: the
    host reads that from the device.
    """

    class_name = "LlavaNextForConditionalGeneration"
    model_type = "llava_next"
    lmms_model = "fastervlm_llava_next"
    inputs = INPUTS
    budgets = ("crop", "image")
    parts = "crops"
    one_graph = False

    def settings(self, options: Options) -> Anyres:
        """How crops are laid out, and whether those of a picture share their tokens."""
        super().settings(options)
        return Anyres(options.anyres, options.newline, "image" if options.budget == "image" else "crop")

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_tower(model, model.model.vision_tower)
        refuse_schedule(pruning.encoder_keep)

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call."""
        check_about_pictures(call)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Score, choose, and only then finish and project the kept patches of all crops of `call["pixel_values"]`.

        `pixel_values` is (B, crops, 3, H, W) as the processor makes it, or (S, 3, H, W), and `image_sizes` (B, 2) goes with it.
        """
        settings: Anyres = pruning.settings
        cuts = _cuts(model, settings, call)
        windows, groups = [window for each in cuts for window in each.windows()], [each.crops for each in cuts]
        patches = asked(scored(model, call, _crops(call["pixel_values"], cuts)), call.get("questions"), groups)
        parts: dict[str, Any] = {"grid": patches.grid, "windows": windows, "groups": groups}
        counts = counts_for(pruning.budget, patches.scores, pool=settings.budget == "image", **parts)
        choice = choose(patches, counts, pruning.method, windows=windows)
        mask = choice.mask
        table, number = choice.project(model.model.multi_modal_projector)
        features, keep, trace = [], [], []
        newline = _newline(model.model).to(table)
        first = 0
        for each in cuts:
            crops = slice(first, first + each.crops)
            stays = each.keep(mask[crops].flatten(), settings.newline)
            tokens = each.source.to(stays.device)[stays]
            rows = table[number[crops].flatten()[tokens.clamp(min=0)].to(table.device)]
            features.append(torch.where((tokens == NEWLINE)[:, None].to(table.device), newline, rows))
            keep.append(stays)
            trace.append(CropsTrace(patches.scores[crops].detach(), mask[crops], tokens, each, settings.layout))
            first = crops.stop
        return {"image": Encoded(features, keep, trace)}

    def loaded(self, pruning: Pruning) -> str:
        """The processor cuts pictures, and has to do it as the model expects."""
        return f" of fastervlm.load(..., anyres={pruning.settings.layout!r})"

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor with what older ones do not say; for anyres="paper" one that cuts as the reference does."""
        processor = complete(processor, config)
        if anyres != "paper":
            return processor
        from fastervlm.families.llava_next.processor import paper_processor

        return paper_processor(processor)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """A `LlavaNextConfig` with the canvases of the published checkpoints."""
        from transformers import LlavaNextConfig

        crop, side = vision.image_size, vision.image_size // vision.patch_size
        return LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokens["image"],
            image_seq_length=side**2,
            image_grid_pinpoints=[[high * crop, wide * crop] for high, wide in _CANVASES],
        )

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """A `LlavaNextProcessor`."""
        from transformers import LlavaNextImageProcessor, LlavaNextProcessor

        pictures = LlavaNextImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **square(config))
        return LlavaNextProcessor(image_processor=pictures, **placeholders(config, tokenizer))

    def separators(self, side: int, frames: int = 0) -> int:
        """A newline token ends each row of patches of the two rows of crops."""
        return 2 * side


def _cuts(model: Any, settings: Anyres, call: Mapping[str, Any]) -> list[CropLayout]:
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


def _crops(pixel_values: Tensor, cuts: list[CropLayout]) -> Tensor:
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


def _newline(inner: Any) -> Tensor:
    """The newline token (D,), wherever accelerate keeps it while the model is not running."""
    if not inner.image_newline.is_meta:
        return inner.image_newline
    from accelerate.utils import align_module_device

    with align_module_device(inner):
        return inner.image_newline.clone()
