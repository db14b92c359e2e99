"""The kinds of models that can be pruned; whoever has a table of models goes by this one."""

from __future__ import annotations

from typing import Any

from encoders import UserTypeError
from fastervlm.families.base import Family
from fastervlm.families.generic.family import Generic
from fastervlm.families.generic.table import SHOWN
from fastervlm.families.internvl import InternVL
from fastervlm.families.llava import Llava
from fastervlm.families.llava_next.family import LlavaNext
from fastervlm.families.llava_next_video import LlavaNextVideo
from fastervlm.families.llava_onevision import LlavaOnevision
from fastervlm.families.others import class_of_type, image_text_to_text, refused, why_refused
from fastervlm.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL
from fastervlm.families.video_llava.family import VideoLlava
from fastervlm.families.vipllava import VipLlava

FAMILIES: tuple[Family, ...] = (
    Llava(),
    LlavaNext(),
    VideoLlava(),
    VipLlava(),
    LlavaNextVideo(),
    LlavaOnevision(),
    InternVL(),
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
)
# Classes without a family of their own of which tests show that the generic one is exact for them.
GENERIC: tuple[Family, ...] = tuple(Generic(shown.class_name, shown.model_type) for shown in SHOWN)


def untested() -> list[str]:
    """The other classes of transformers that might be taken by the generic family; `prune` tries them."""
    known = {family.class_name for family in (*FAMILIES, *GENERIC)} | set(refused())
    return sorted(set(image_text_to_text()) - known)


def find_family(model: Any) -> Family | None:
    """The family of a model, by its class or one that it derives from: its own, or the generic one."""
    classes = [cls.__name__ for cls in type(model).__mro__]
    found = {family.class_name: family for family in FAMILIES if family.class_name in classes}
    own = next((found[name] for name in classes if name in found), None)
    if own is not None:
        return own
    more = (name for name in classes if name in image_text_to_text() and not why_refused(name))
    return next((Generic.of(model, name) for name in more), None)


def family_of(model: object, done: str = "pruned") -> Family:
    """The same.

    Raises:
        UserTypeError: it has none; the message says that the model cannot be `done`.
    """
    family = find_family(model)
    if family is None:
        classes = ", ".join(family.class_name for family in FAMILIES)
        raise UserTypeError(
            f"A {type(model).__name__} cannot be {done}; supported models are {classes} and others that `fastervlm models` "
            "lists."
        )
    return family


def family_of_type(model_type: str, name_of: str = "This") -> Family:
    """The family with that `model_type` in its config.

    Raises:
        UserTypeError: there is none; `name_of` is what the checkpoint is called.
    """
    found = {family.model_type: family for family in FAMILIES}
    if model_type in found:
        return found[model_type]
    name = class_of_type(model_type)
    if name is None or why_refused(name):
        raise UserTypeError(
            f"{name_of} is a {model_type!r} model; supported are {', '.join(found)} and what `fastervlm models` lists."
        )
    return Generic(name, model_type)
