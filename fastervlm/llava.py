"""LLaVA-1.5 (`LlavaForConditionalGeneration`): one picture, one flat run of visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from encoders import ScoredPatches, UserError, VisionEncoder, wrap
from fastervlm.budget import TokenBudget
from fastervlm.choice import Choice, asked, check_questions, choose, counts_for
from fastervlm.trace import ImageTrace

if TYPE_CHECKING:
    from fastervlm.prune import PruneHandle


@dataclass(frozen=True, eq=False)
class Encoded:
    """The pictures of one call, pruned and projected.

    Attributes:
        features: for each picture (T_i, D), what stands at its placeholders.
        keep: for each picture (N_i,) bool, which of its placeholders stay; T_i of them are true.
        trace: for each picture, what was kept; an `ImageTrace` or a `CropsTrace`.
    """

    features: list[Tensor]
    keep: list[Tensor]
    trace: list[Any]

    def shown(self, image_index: Sequence[int] | Tensor, kind: str = "image") -> Encoded:
        """The picture behind each placeholder run, where `image_index` (n,) names them: a picture may be shown often."""
        index = image_index.tolist() if isinstance(image_index, Tensor) else image_index
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise UserError(f"{kind}_index={index!r} must be a list of whole numbers, one for each <{kind}> of the prompts.")
        if any(not 0 <= i < len(self.features) for i in index):
            raise UserError(
                f"{kind}_index={index} names {kind}s that are not there: the pixel values hold {len(self.features)}."
            )
        return Encoded(*([values[i] for i in index] for values in (self.features, self.keep, self.trace)))  # type: ignore[arg-type]


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


def flat(choice: Choice, projector: Callable[[Tensor], Tensor]) -> Encoded:
    """Each row of a choice as a picture whose kept tokens stand in raster order, nothing between."""
    tokens, _ = choice.project(projector)
    # What left inside the tower is below all others there.
    kept = zip(choice.patches.scores.detach().clamp(min=0), choice.index, choice.counts, strict=True)
    trace = [ImageTrace(scores, index[:count], choice.patches.grid) for scores, index, count in kept]
    return Encoded(list(tokens.split(choice.counts)), list(choice.mask), trace)


def _left(handle: PruneHandle, call: dict[str, Any]) -> ScoredPatches:
    """The patches of `call["pixel_values"]` (B, 3, H, W), scored; those that leave inside the tower are gone already."""
    schedule, budget = handle.encoder_keep, handle.budget
    if schedule is None or not isinstance(budget, TokenBudget):
        return scored(handle.model, call, call["pixel_values"])
    encoder: Any = encoder_of(handle.model, call, handle.model.model.vision_tower)
    return encoder.thinned(call["pixel_values"], lambda patches: schedule.counts(patches, budget.resolve(patches)))


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
