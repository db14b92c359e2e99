"""What families have in common on the way from pixels to kept and projected tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError, VisionEncoder, wrap
from fastervlm.families.base import Encoded
from fastervlm.families.pruning import Pruning
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.choice import Choice, check_questions
from fastervlm.selection.method import traits
from fastervlm.selection.schedule import check_fits
from fastervlm.selection.trace import ImageTrace

# The arguments of a call that say what is shown and how it is encoded, of models with one vision tower.
INPUTS = (
    *("pixel_values", "image_index", "image_sizes"),
    *("vision_feature_layer", "vision_feature_select_strategy", "questions"),
)


def check_tower(model: Any, tower: Any, pruning: Pruning) -> VisionEncoder:
    """The encoder of a tower of a model; refuses one that cannot be scored, or whose [CLS] reaches the language model."""
    encoder = wrap(tower, select_layer=model.config.vision_feature_layer, **pruning.tower)
    check_strategy(model.config.vision_feature_select_strategy, encoder)
    return encoder


def check_thinned(pruning: Pruning, *encoders: Any, crops: bool = False, clips: bool = False) -> None:
    """Refuse patches that leave inside towers where these, the method or the budget cannot have that.

    `crops`: they see pictures in crops, behind an overview. `clips`: they see frames.

    Raises:
        UserError: one cannot.
        UserTypeError: what says which leave is no `EncoderSchedule`.
    """
    if pruning.encoder_keep is None:
        return
    check_fits(pruning.encoder_keep, pruning.budget, traits(pruning.method).survives_thinning, crops=crops, clips=clips)
    for encoder in encoders:
        encoder.check_thinning(pruning.encoder_keep.blocks)


def thinned(encoder: Any, pruning: Pruning, pixel_values: Tensor, last: Tensor | None = None, least: int = 0) -> ScoredPatches:
    """The patches of pixel_values, scored; those that leave inside the tower are gone already.

    Where `last` (S, N) is true, patches leave before all others; `least` stay of each row, or what the budget keeps if more.
    """
    schedule, budget = pruning.encoder_keep, pruning.budget
    if schedule is None or not schedule.blocks or not isinstance(budget, TokenBudget):
        return encoder(pixel_values)
    return encoder.thinned(
        pixel_values, lambda patches: schedule.counts(patches, max(least, budget.resolve(patches))), last=last
    )


def check_about_pictures(call: Mapping[str, Any]) -> None:
    """Refuse questions that are not one text for each picture of a call."""
    if call.get("questions") is not None:
        check_questions(call["questions"], len(call["pixel_values"]))


def runs(ids: Tensor, placeholder: int) -> list[int]:
    """How many placeholders stand side by side, run by run, in the order of the prompts ids (R, T)."""
    place = torch.nn.functional.pad((ids.cpu() == placeholder).long(), (1, 1)).flatten().diff()
    return ((place == -1).nonzero()[:, 0] - (place == 1).nonzero()[:, 0]).tolist()


def flat(
    choice: Choice, projector: Callable[[Tensor], Tensor], shows: Literal["square", "whole", "part"] = "square"
) -> Encoded:
    """Each row of a choice as a picture whose kept tokens stand in raster order, nothing between; `shows`: see `ImageTrace`."""
    tokens, _ = choice.project(projector)
    # What left inside the tower is below all others there.
    kept = zip(choice.patches.scores.detach().clamp(min=0), choice.index, choice.counts, strict=True)
    trace = [ImageTrace(scores, index[:count], choice.patches.grid, shows=shows) for scores, index, count in kept]
    return Encoded(list(tokens.split(choice.counts)), list(choice.mask), trace)


def in_groups(features: list[Tensor]) -> Tensor:
    """The features (T_i, D) of one kind as one tensor, (all of them / G, G, D), which the stock model flattens again.

    Beam search parts it between the rows of a batch, which groups of G therefore must not cross.
    """
    return torch.cat(features).unflatten(0, (-1, max(1, math.gcd(*map(len, features)))))


def scored(model: Any, pruning: Pruning, call: Mapping[str, Any], pixel_values: Tensor) -> ScoredPatches:
    """The patches of pixel_values (B, 3, H, W) as the model's tower scores them, at the layers the call asks for."""
    return encoder_of(model, pruning, call, model.model.vision_tower)(pixel_values)


def encoder_of(model: Any, pruning: Pruning, call: Mapping[str, Any], tower: Any) -> VisionEncoder:
    """The encoder of one of the model's towers, at the layers the call asks for."""
    layer = call.get("vision_feature_layer")
    layer = model.config.vision_feature_layer if layer is None else layer
    encoder = wrap(tower, select_layer=layer, **pruning.tower)
    check_strategy(call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy, encoder)
    return encoder


def check_strategy(strategy: str, encoder: Any) -> None:
    """Refuse a strategy by which pictures keep their [CLS] token, or lose a patch in its place where there is none."""
    if encoder.prefix and strategy != "default":
        raise UserError(
            f"vision_feature_select_strategy={strategy!r} also feeds the [CLS] token to the language model, where fastervlm "
            "prunes patches only; use 'default'."
        )
    if not encoder.prefix and strategy != "full":
        raise UserError(
            f"vision_feature_select_strategy={strategy!r} takes the first token off, which is a patch in this tower without "
            "[CLS]; use 'full'."
        )
