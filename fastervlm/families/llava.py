"""LLaVA-1.5 (`LlavaForConditionalGeneration`): one picture, one flat run of visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import INPUTS, check_about_pictures, check_thinned, check_tower, encoder_of, flat, thinned
from fastervlm.families.processing import complete, placeholders, square
from fastervlm.families.pruning import Pruning
from fastervlm.families.shrunk import encode_shrunk
from fastervlm.selection.choice import asked, choose, counts_for
from fastervlm.selection.method import traits


class Llava(Family):
    """How a LLaVA-1.5 model encodes pictures under pruning."""

    class_name = "LlavaForConditionalGeneration"
    model_type = "llava"
    lmms_model = "fastervlm_llava_hf"
    of_paper = True
    inputs = INPUTS
    budgets = ("crop", "image")
    shrinks = "tower"

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_thinned(pruning, check_tower(model, model.model.vision_tower, pruning))

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call."""
        check_about_pictures(call)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Score, choose, and only then finish and project the kept patches of `call["pixel_values"]` (B, 3, H, W)."""
        encoder = encoder_of(model, pruning, call, model.model.vision_tower)
        if traits(pruning.method).resizes:
            return {"image": encode_shrunk(encoder, model.model.multi_modal_projector, pruning, call["pixel_values"])}
        patches = asked(thinned(encoder, pruning, call["pixel_values"]), call.get("questions"))
        choice = choose(patches, counts_for(pruning.budget, patches.scores), pruning.method)
        return {"image": flat(choice, model.model.multi_modal_projector)}

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor with what older ones do not say; pictures are not cut."""
        return complete(processor, config)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """A `LlavaConfig`."""
        from transformers import LlavaConfig

        side = vision.image_size // vision.patch_size
        return LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokens["image"], image_seq_length=side**2)

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """A `LlavaProcessor`."""
        from transformers import CLIPImageProcessor, LlavaProcessor

        return LlavaProcessor(image_processor=CLIPImageProcessor(**square(config)), **placeholders(config, tokenizer))
