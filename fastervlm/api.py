"""All that users import from `fastervlm`; it is loaded when the first of these names is asked for."""

from __future__ import annotations

from encoders import ScoredPatches, UserError, UserTypeError, VisionEncoder, wrap
from fastervlm import methods
from fastervlm.checkpoints.load import load
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.handle import Handle
from fastervlm.inllm.handle import InLLMHandle
from fastervlm.inllm.trace import TokenTrace
from fastervlm.methods import *  # noqa: F403 - each method, so that a new one need not be named here too
from fastervlm.overlays import overlay
from fastervlm.patches import KeptPatches, prune_patches
from fastervlm.prune_model import PruneHandle, prune
from fastervlm.selection.budget import AtMost, Budget, Mass, Outliers, TokenBudget, Total
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.schedule import EncoderSchedule
from fastervlm.selection.trace import ImageTrace

__all__ = [
    "AtMost",
    "Budget",
    "ClipTrace",
    "CropsTrace",
    "EncoderSchedule",
    "Handle",
    "ImageTrace",
    "InLLMHandle",
    "KeptPatches",
    "KeptTokens",
    "Mass",
    "Outliers",
    "PruneHandle",
    "ScoredPatches",
    "TokenBudget",
    "TokenTrace",
    "Total",
    "UserError",
    "UserTypeError",
    "VisionEncoder",
    "load",
    "overlay",
    "prune",
    "prune_patches",
    "wrap",
]
__all__ += methods.__all__
