"""Checkpoints in the layout that LLaVA's and Video-LLaVA's authors publish: read as they are, or converted once.

Their config.json is that of the language model with `mm_*` keys added, their weights bear other names, the vision tower is
stored inside or elsewhere (`mm_vision_tower`; `mm_image_tower` and `mm_video_tower`), and there is no processor.
"""

from __future__ import annotations

from fastervlm.checkpoints.original.config import is_original
from fastervlm.checkpoints.original.convert import convert
from fastervlm.checkpoints.original.read import read, tower_files

__all__ = ["convert", "is_original", "read", "tower_files"]
