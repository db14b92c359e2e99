"""Prompt templates (`--conv-mode`): how a question is put to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from encoders.errors import UserError

VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: <image>\n{text} ASSISTANT:"
)
TEMPLATES = {"vicuna_v1": VICUNA_V1}
CONV_MODES = (*TEMPLATES, "chat")


def conversation(processor: Any, mode: str | None) -> Callable[[str], str]:
    """A function from the question's text to the whole prompt; without a mode the processor's chat template, if it has one."""
    has_template = bool(getattr(processor, "chat_template", None))
    mode = mode or ("chat" if has_template else "vicuna_v1")
    if mode in TEMPLATES:
        return lambda text: TEMPLATES[mode].replace("{text}", text)
    if not has_template:
        raise UserError("The model's processor has no chat template; use --conv-mode vicuna_v1.")
    return lambda text: _chat(processor, text)


def _chat(processor: Any, text: str) -> str:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([message], add_generation_prompt=True)
