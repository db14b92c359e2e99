"""What families have in common on the way from pixels to kept and projected tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from encoders import ScoredPatches, UserError, VisionEncoder, wrap
from fastervlm.families.base import Encoded
from fastervlm.selection.choice import Choice, check_questions
from fastervlm.selection.trace import ImageTrace

# The arguments of a call that say what is shown and how it is encoded, of models with one vision tower.
INPUTS = (
    *("pixel_values", "image_index", "image_sizes"),
    *("vision_feature_layer", "vision_feature_select_strategy", "questions"),
)


def check_tower(model: Any, tower: Any) -> VisionEncoder:
    """The encoder of a tower of a model; refuses one that cannot be scored, or whose [CLS] reaches the language model."""
    encoder = wrap(tower, select_layer=model.config.vision_feature_layer)
    check_strategy(model.config.vision_feature_select_strategy)
    return encoder


def check_about_pictures(call: Mapping[str, Any]) -> None:
    """Refuse questions that are not one text for each picture of a call."""
    if call.get("questions") is not None:
        check_questions(call["questions"], len(call["pixel_values"]))


def flat(choice: Choice, projector: Callable[[Tensor], Tensor]) -> Encoded:
    """Each row of a choice as a picture whose kept tokens stand in raster order, nothing between."""
    tokens, _ = choice.project(projector)
    # What left inside the tower is below all others there.
    kept = zip(choice.patches.scores.detach().clamp(min=0), choice.index, choice.counts, strict=True)
    trace = [ImageTrace(scores, index[:count], choice.patches.grid) for scores, index, count in kept]
    return Encoded(list(tokens.split(choice.counts)), list(choice.mask), trace)


def scored(model: Any, call: Mapping[str, Any], pixel_values: Tensor) -> ScoredPatches:
    """The patches of pixel_values (B, 3, H, W) as the model's tower scores them, at the layers the call asks for."""
    return encoder_of(model, call, model.model.vision_tower)(pixel_values)


def encoder_of(model: Any, call: Mapping[str, Any], tower: Any) -> VisionEncoder:
    """The encoder of one of the model's towers, at the layers the call asks for."""
    layer = call.get("vision_feature_layer")
    check_strategy(call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy)
    return wrap(tower, select_layer=model.config.vision_feature_layer if layer is None else layer)


def check_strategy(strategy: str) -> None:
    """Refuse a strategy by which pictures keep their [CLS] token."""
    if strategy != "default":
        raise UserError(
            f"vision_feature_select_strategy={strategy!r} also feeds the [CLS] token to the language model, where fastervlm "
            "prunes patches only; use 'default'."
        )
