"""ViP-LLaVA (`VipLlavaForConditionalGeneration`): one picture, features of several layers of a CLIP tower side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from encoders import UserError, wrap
from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import check_about_pictures, flat, in_groups
from fastervlm.families.processing import complete
from fastervlm.families.pruning import Pruning
from fastervlm.selection.choice import asked, choose, counts_for
from fastervlm.selection.schedule import refuse_schedule


class VipLlava(Family):
    """How a ViP-LLaVA model encodes pictures under pruning: scored in the deepest of its layers."""

    class_name = "VipLlavaForConditionalGeneration"
    model_type = "vipllava"
    inputs = ("pixel_values", "image_index", "vision_feature_layer", "questions")
    budgets = ("crop", "image")

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        encoder: Any = wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer, **pruning.tower)
        if not encoder.prefix:
            raise UserError(
                "A ViP-LLaVA takes the first token off, which is a patch in a tower without [CLS]; use a CLIP tower."
            )
        refuse_schedule(pruning.encoder_keep)

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call."""
        check_about_pictures(call)

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Score, choose, and only then finish and project the kept patches of `call["pixel_values"]` (B, 3, H, W)."""
        layer = call.get("vision_feature_layer")
        layer = model.config.vision_feature_layer if layer is None else layer
        encoder = wrap(model.model.vision_tower, select_layer=layer, **pruning.tower)
        patches = asked(encoder(call["pixel_values"]), call.get("questions"))
        choice = choose(patches, counts_for(pruning.budget, patches.scores), pruning.method)
        return {"image": flat(choice, model.model.multi_modal_projector)}

    def outputs(self, features: list[Tensor], kind: str) -> Tensor:
        """One tensor, see `in_groups`."""
        return in_groups(features)

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor with what older ones do not say; pictures are not cut."""
        return complete(processor, config)
