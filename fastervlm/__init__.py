"""Rank the patch tokens of a CLIP image by the attention its [CLS] token pays them, and keep the best K.

model, processor = fastervlm.load("llava-hf/llava-1.5-7b-hf")
with fastervlm.prune(model, keep=58):
    model.generate(**processor(images=image, text=prompt, return_tensors="pt").to(model.device))
"""

from encoders import ScoredPatches, UserError, UserTypeError, VisionEncoder, wrap
from fastervlm.checkpoints.load import load
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.handle import Handle
from fastervlm.inllm import FastV, InLLM, Simignore
from fastervlm.inllm.handle import InLLMHandle
from fastervlm.inllm.trace import TokenTrace
from fastervlm.methods import (
    DART,
    METHODS,
    CDPruner,
    ClipRelevance,
    ClsAttention,
    DivPrune,
    PruMerge,
    RandomTokens,
    UniformGrid,
    VisionZip,
    VisPruner,
)
from fastervlm.overlays import overlay
from fastervlm.patches import KeptPatches, prune_patches
from fastervlm.prune_model import PruneHandle, prune
from fastervlm.selection.budget import Budget, Mass, Outliers, TokenBudget, Total
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Method
from fastervlm.selection.schedule import EncoderSchedule
from fastervlm.selection.trace import ImageTrace

__version__ = "0.1.0"

__all__ = [
    "DART",
    "METHODS",
    "Budget",
    "CDPruner",
    "ClipRelevance",
    "ClipTrace",
    "ClsAttention",
    "CropsTrace",
    "DivPrune",
    "EncoderSchedule",
    "FastV",
    "Handle",
    "ImageTrace",
    "InLLM",
    "InLLMHandle",
    "KeptPatches",
    "KeptTokens",
    "Mass",
    "Method",
    "Outliers",
    "PruMerge",
    "PruneHandle",
    "RandomTokens",
    "ScoredPatches",
    "Simignore",
    "TokenBudget",
    "TokenTrace",
    "Total",
    "UniformGrid",
    "UserError",
    "UserTypeError",
    "VisPruner",
    "VisionEncoder",
    "VisionZip",
    "load",
    "overlay",
    "prune",
    "prune_patches",
    "wrap",
]
