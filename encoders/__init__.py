"""Vision towers of several libraries behind one call: score the patches by [CLS], then compute the kept features only."""

from encoders.base import ScoredPatches, VisionEncoder
from encoders.errors import UserError, UserTypeError
from encoders.registry import TOWERS, SupportedTower, wrap

__all__ = ["TOWERS", "ScoredPatches", "SupportedTower", "UserError", "UserTypeError", "VisionEncoder", "wrap"]
