"""The kinds of models that can be pruned; whoever has a table of models goes by this one."""

from __future__ import annotations

from encoders import UserError, UserTypeError
from fastervlm.families.base import Family
from fastervlm.families.internvl import InternVL
from fastervlm.families.llava import Llava
from fastervlm.families.llava_next.family import LlavaNext
from fastervlm.families.llava_next_video import LlavaNextVideo
from fastervlm.families.llava_onevision import LlavaOnevision
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


def find_family(model: object) -> Family | None:
    """The family of a model, by its class or one that it derives from."""
    classes = [cls.__name__ for cls in type(model).__mro__]
    found = {family.class_name: family for family in FAMILIES if family.class_name in classes}
    return next((found[name] for name in classes if name in found), None)


def family_of(model: object, done: str = "pruned") -> Family:
    """The same.

    Raises:
        UserTypeError: it has none; the message says that the model cannot be `done`.
    """
    family = find_family(model)
    if family is None:
        classes = ", ".join(family.class_name for family in FAMILIES)
        raise UserTypeError(f"A {type(model).__name__} cannot be {done}; supported models are {classes}.")
    return family


def measured_family_of(model: object, done: str) -> Family:
    """The same, of a model of whose family it has been shown that it can be `done`.

    Raises:
        UserError: that has not been shown.
    """
    family = family_of(model, done)
    if not family.measured:
        raise UserError(f"A {family.class_name} can be pruned in front of its language model, but not {done} yet.")
    return family


def family_of_type(model_type: str, name: str = "This") -> Family:
    """The family with that `model_type` in its config.

    Raises:
        UserTypeError: there is none; `name` is what the checkpoint is called.
    """
    found = {family.model_type: family for family in FAMILIES}
    if model_type not in found:
        raise UserTypeError(f"{name} is a {model_type!r} model; supported are {', '.join(found)}.")
    return found[model_type]
