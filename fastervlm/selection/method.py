"""What a method is."""

from __future__ import annotations

from collections.abc import Callable

from encoders import ScoredPatches
from fastervlm.selection.kept import KeptTokens

Method = Callable[[ScoredPatches, int], KeptTokens]
