"""LLaVA-1.5 (`LlavaForConditionalGeneration`): one picture, one flat run of visual tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from encoders import ScoredPatches, wrap
from fastervlm.families.base import Encoded
from fastervlm.families.encoding import check_strategy, encoder_of, flat, scored
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.choice import asked, check_questions, choose, counts_for

if TYPE_CHECKING:
    from fastervlm.prune_model import PruneHandle


class Llava:
    """How a LLaVA-1.5 model encodes pictures under pruning."""

    inputs = (
        "pixel_values",
        "image_index",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "questions",
    )
    budgets = ("crop", "image")
    one_graph = True  # nothing that depends on values decides how pictures are encoded

    @staticmethod
    def check(model: Any) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer)
        check_strategy(model.config.vision_feature_select_strategy)

    @staticmethod
    def check_questions(call: dict[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call."""
        if call.get("questions") is not None:
            check_questions(call["questions"], len(call["pixel_values"]))

    @classmethod
    def encode_all(cls, handle: PruneHandle, call: dict[str, Any]) -> dict[str, Encoded]:
        """All that the call shows, by the kind of its placeholders, "image" or "video"."""
        return {"image": cls.encode(handle, call)}

    @staticmethod
    def outputs(features: list[Tensor]) -> Any:
        """The features (T_i, D) of one kind in the form in which the stock model takes them."""
        return features

    @staticmethod
    def encode(handle: PruneHandle, call: dict[str, Any]) -> Encoded:
        """Score, choose, and only then finish and project the kept patches of `call["pixel_values"]` (B, 3, H, W)."""
        patches = asked(_left(handle, call), call.get("questions"))
        choice = choose(patches, counts_for(handle.budget, patches.scores), handle.method)
        return flat(choice, handle.model.model.multi_modal_projector)


def _left(handle: PruneHandle, call: dict[str, Any]) -> ScoredPatches:
    """The patches of `call["pixel_values"]` (B, 3, H, W), scored; those that leave inside the tower are gone already."""
    schedule, budget = handle.encoder_keep, handle.budget
    if schedule is None or not isinstance(budget, TokenBudget):
        return scored(handle.model, call, call["pixel_values"])
    encoder: Any = encoder_of(handle.model, call, handle.model.model.vision_tower)
    return encoder.thinned(call["pixel_values"], lambda patches: schedule.counts(patches, budget.resolve(patches)))
