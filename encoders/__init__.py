"""Vision towers of several libraries behind one call: score the patches by [CLS], then compute the kept features only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoders.errors import UserError, UserTypeError

if TYPE_CHECKING:
    from encoders.base import ScoredPatches, VisionEncoder
    from encoders.registry import TOWERS, SupportedTower, wrap

__all__ = ["TOWERS", "ScoredPatches", "SupportedTower", "UserError", "UserTypeError", "VisionEncoder", "wrap"]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for, so that a mistake is told without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = name in ("ScoredPatches", "VisionEncoder")
    return getattr(import_module("encoders.base" if base else "encoders.registry"), name)
