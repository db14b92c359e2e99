"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`): an overview and crops, each pruned by its own [CLS] attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders import UserError
from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import INPUTS, check_about_pictures, check_thinned, check_tower, encoder_of, thinned
from fastervlm.families.llava_next.encode import crops_of, cuts_of, encode_crops, outside
from fastervlm.families.llava_next.overview import decides, encode_by_overview
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.processing import complete, placeholders, square
from fastervlm.families.pruning import Options, Pruning

_CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # in crops, (high, wide), of the published checkpoints


class LlavaNext(Family):
    """How a LLaVA-NeXT model encodes pictures under pruning.

    Which tokens stay of a picture, newlines among them, depends on which patches are kept of each crop and on un-padding: the
    host reads that from the device.
    """

    class_name = "LlavaNextForConditionalGeneration"
    model_type = "llava_next"
    lmms_model = "fastervlm_llava_next"
    of_paper = True
    inputs = INPUTS
    budgets = ("crop", "image", "overview")
    parts = "crops"
    newlines = True
    shapes = ("anyres",)
    one_graph = False

    def settings(self, options: Options) -> Anyres:
        """How crops are laid out, and whether those of a picture share their tokens."""
        super().settings(options)
        return Anyres.of(vars(options))

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_thinned(pruning, check_tower(model, model.model.vision_tower, pruning), crops=True)
        if pruning.encoder_keep is not None and pruning.settings.budget == "image":
            raise UserError("budget='image' may give a crop more tokens than encoder_keep leaves; use 'crop' or 'overview'.")
        if pruning.settings.budget == "overview" and pruning.budget.reads_scores:
            raise UserError(
                "budget='overview' shares tokens before the crops are scored; give a count or fraction of tokens, or an AtMost "
                "of one, or use budget='image'."
            )

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call."""
        check_about_pictures(call)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Score, choose, and only then finish and project the kept patches of all crops of `call["pixel_values"]`.

        `pixel_values` is (B, crops, 3, H, W) as the processor makes it, or (S, 3, H, W), and `image_sizes` (B, 2) goes with it.
        """
        cuts = cuts_of(model, pruning.settings, call)
        encoder = encoder_of(model, pruning, call, model.model.vision_tower)
        crops, questions = crops_of(call["pixel_values"], cuts), call.get("questions")
        if decides(pruning):
            return {"image": encode_by_overview(model, pruning, encoder, crops, cuts, questions)}
        patches = thinned(encoder, pruning, crops, outside(cuts))
        return {"image": encode_crops(model, pruning, patches, cuts, questions)}

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
