"""Vision towers of several libraries behind one call: score the patches by [CLS], then compute the kept features only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from encoders.base import ScoredPatches, VisionEncoder
from encoders.errors import UserError, UserTypeError
from encoders.hf_clip import HfClipEncoder

__all__ = ["ScoredPatches", "UserError", "UserTypeError", "VisionEncoder", "wrap"]

# Adapters by the name of the tower's class or of a class it derives from: no library is imported to look them up.
_ADAPTERS: dict[str, Callable[[Any, int | Sequence[int]], VisionEncoder]] = {
    "CLIPVisionModel": HfClipEncoder,
    "CLIPVisionModelWithProjection": HfClipEncoder,
}
_WITHOUT_CLS = frozenset(
    ("ConvNextModel", "ConvNextV2Model", "PixtralVisionModel", "Siglip2VisionModel", "SiglipVisionModel", "SwinModel")
)


def wrap(tower: nn.Module, *, select_layer: int | list[int] = -2) -> VisionEncoder:
    """An encoder that stops inside the feature block of a vision tower; the tower is shared, not copied or changed.

    Args:
        tower: a `CLIPVisionModel` or `CLIPVisionModelWithProjection` of transformers, such as `model.model.vision_tower`
            of a LLaVA.
        select_layer: the hidden state to take features from, counted as transformers' `hidden_states` and LLaVA's
            `vision_feature_layer`; of a list, the features are concatenated and the deepest gives the scores.
    """
    names = [cls.__name__ for cls in type(tower).__mro__]
    supported = " and ".join(_ADAPTERS)
    for name in names:
        if name in _ADAPTERS:
            return _ADAPTERS[name](tower, select_layer)
    if not _WITHOUT_CLS.isdisjoint(names):
        raise UserError(f"A {names[0]} has no [CLS] token to score its patches by; supported towers are {supported}.")
    raise UserTypeError(f"A {names[0]} is not a vision tower that can be wrapped; supported towers are {supported}.")
