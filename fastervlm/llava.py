"""LLaVA-1.5 (`LlavaForConditionalGeneration`): one picture, one flat run of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from encoders import ScoredPatches, UserError, wrap
from fastervlm.kept import KeptTokens, check_kept
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

    def shown(self, image_index: Sequence[int] | Tensor) -> Encoded:
        """The picture behind each placeholder run, where `image_index` (n,) names them: a picture may be shown often."""
        index = image_index.tolist() if isinstance(image_index, Tensor) else image_index
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise UserError(f"image_index={index!r} must be a list of whole numbers, one for each <image> of the prompts.")
        if any(not 0 <= i < len(self.features) for i in index):
            raise UserError(f"image_index={index} names pictures that are not there: pixel_values holds {len(self.features)}.")
        return Encoded(*([values[i] for i in index] for values in (self.features, self.keep, self.trace)))  # type: ignore[arg-type]


class Llava:
    """How a LLaVA-1.5 model encodes pictures under pruning."""

    inputs = ("pixel_values", "image_index", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")

    @staticmethod
    def check(model: Any) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer)
        _check_strategy(model.config.vision_feature_select_strategy)

    @staticmethod
    def encode(handle: PruneHandle, call: dict[str, Any]) -> Encoded:
        """Score, choose, and only then finish and project the kept patches of `call["pixel_values"]` (B, 3, H, W)."""
        patches = scored(handle.model, call, call["pixel_values"])
        count = patches.scores.shape[1]
        kept = chosen(handle, patches, handle.budget.resolve(count))
        # All patches without an index: the stock model's memory layout, and so exactly its rounding.
        every = kept.index.shape[1] == count
        features = handle.model.model.multi_modal_projector(patches.features(None if every else kept.index))
        trace = [
            ImageTrace(scores, index, patches.grid) for scores, index in zip(patches.scores.detach(), kept.index, strict=True)
        ]
        encoded = Encoded(list(features), list(kept.mask), trace)
        return encoded if call.get("image_index") is None else encoded.shown(call["image_index"])


def scored(model: Any, call: dict[str, Any], pixel_values: Tensor) -> ScoredPatches:
    """The patches of pixel_values (B, 3, H, W) as the model's tower scores them, at the layers the call asks for."""
    layer = call.get("vision_feature_layer")
    _check_strategy(call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy)
    tower = wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer if layer is None else layer)
    return tower(pixel_values)


def chosen(handle: PruneHandle, patches: ScoredPatches, k: int) -> KeptTokens:
    """The `k` patches of each image that the method keeps, checked."""
    kept = handle.method(patches, k)
    pictures, count = patches.scores.shape
    check_kept(kept, pictures, count)
    return kept


def _check_strategy(strategy: str) -> None:
    if strategy != "default":
        raise UserError(
            f"vision_feature_select_strategy={strategy!r} also feeds the [CLS] token to the language model, where fastervlm "
            "prunes patches only; use 'default'."
        )
