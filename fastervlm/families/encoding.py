"""What families have in common on the way from pixels to kept and projected tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from encoders import ScoredPatches, UserError, VisionEncoder, wrap
from fastervlm.families.base import Encoded
from fastervlm.selection.choice import Choice
from fastervlm.selection.trace import ImageTrace


def flat(choice: Choice, projector: Callable[[Tensor], Tensor]) -> Encoded:
    """Each row of a choice as a picture whose kept tokens stand in raster order, nothing between."""
    tokens, _ = choice.project(projector)
    # What left inside the tower is below all others there.
    kept = zip(choice.patches.scores.detach().clamp(min=0), choice.index, choice.counts, strict=True)
    trace = [ImageTrace(scores, index[:count], choice.patches.grid) for scores, index, count in kept]
    return Encoded(list(tokens.split(choice.counts)), list(choice.mask), trace)


def scored(model: Any, call: dict[str, Any], pixel_values: Tensor) -> ScoredPatches:
    """The patches of pixel_values (B, 3, H, W) as the model's tower scores them, at the layers the call asks for."""
    return encoder_of(model, call, model.model.vision_tower)(pixel_values)


def encoder_of(model: Any, call: dict[str, Any], tower: Any) -> VisionEncoder:
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
