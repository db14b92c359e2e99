"""Vicuna's conversation, on which LLaVA was tuned."""

from __future__ import annotations

VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: <image>\n{text} ASSISTANT:"
)
