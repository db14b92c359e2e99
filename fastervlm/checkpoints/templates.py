"""Vicuna's conversation, on which LLaVA was tuned, and the one of "llava_v1", which Video-LLaVA is asked by."""

from __future__ import annotations

VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: <image>\n{text} ASSISTANT:"
)
LLAVA_V1 = VICUNA_V1.replace("curious user", "curious human").replace("the user's", "the human's")
