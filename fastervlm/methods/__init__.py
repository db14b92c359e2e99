"""Methods that choose which visual tokens to keep, before the language model sees any or inside it.

A method is a small frozen dataclass, called with the scored patches and the number to keep; one that prunes inside the
language model is an `InLLM` instead. To add one, write it in a file of its own and name it in METHODS.
"""

from __future__ import annotations

from fastervlm.inllm import FastV, InLLM, Simignore
from fastervlm.methods.baselines import RandomTokens, UniformGrid
from fastervlm.methods.cdpruner import CDPruner
from fastervlm.methods.clip_relevance import ClipRelevance
from fastervlm.methods.cls_attention import ClsAttention
from fastervlm.methods.coverage import Coverage
from fastervlm.methods.dart import DART
from fastervlm.methods.divprune import DivPrune
from fastervlm.methods.hiprune import HiPrune
from fastervlm.methods.holov import HoloV
from fastervlm.methods.mmtok import MMTok
from fastervlm.methods.prumerge import PruMerge
from fastervlm.methods.prumerge_plus import PruMergePlus
from fastervlm.methods.resolution import Pool, Resize
from fastervlm.methods.scope import Scope
from fastervlm.methods.visionzip import VisionZip
from fastervlm.methods.vispruner import VisPruner
from fastervlm.methods.vscan import VScan
from fastervlm.methods.word_likeness import WordLikeness
from fastervlm.selection.method import Method

__all__ = [
    "DART",
    "METHODS",
    "CDPruner",
    "ClipRelevance",
    "ClsAttention",
    "Coverage",
    "DivPrune",
    "FastV",
    "HiPrune",
    "HoloV",
    "InLLM",
    "MMTok",
    "Method",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "RandomTokens",
    "Resize",
    "Scope",
    "Simignore",
    "UniformGrid",
    "VScan",
    "VisPruner",
    "VisionZip",
    "WordLikeness",
]

METHODS: dict[str, Method] = {
    "cls": ClsAttention(),
    "cls-lowest": ClsAttention(lowest=True),
    "random": RandomTokens(),
    "grid": UniformGrid(),
    "vispruner": VisPruner(),
    "visionzip": VisionZip(),
    "divprune": DivPrune(),
    "cdpruner": CDPruner(),
    "prumerge": PruMerge(),
    "prumerge-plus": PruMergePlus(),
    "dart": DART(),
    "coverage": Coverage(),
    "mmtok": MMTok(),
    "scope": Scope(),
    "holov": HoloV(),
    "hiprune": HiPrune(),
    "vscan": VScan(),
    "resize": Resize(),
    "pool": Pool(),
    "fastv": FastV(),
    "simignore": Simignore(),
}
