"""Prompt templates (`--conv-mode`): how a question is put to the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from encoders.errors import UserError
from fastervlm.conversation import VICUNA_V1

LLAVA_V1 = VICUNA_V1.replace("curious user", "curious human").replace("the user's", "the human's")
TEMPLATES = {"vicuna_v1": VICUNA_V1, "llava_v1": LLAVA_V1}
PICTURE = "<image>\n"
CONV_MODES = (*TEMPLATES, "chat")


def conversation(processor: Any, mode: str | None) -> Callable[..., str]:
    """A function `(text, with_picture=True)` from the question's text to the whole prompt.

    Without a mode it is the processor's chat template, if there is one.
    """
    has_template = bool(getattr(processor, "chat_template", None))
    mode = mode or ("chat" if has_template else "vicuna_v1")
    if mode in TEMPLATES:
        return functools.partial(_fill, TEMPLATES[mode])
    if not has_template:
        raise UserError("The model's processor has no chat template; use --conv-mode vicuna_v1.")
    return functools.partial(_chat, processor)


def _fill(template: str, text: str, with_picture: bool = True) -> str:
    return (template if with_picture else template.replace(PICTURE, "")).replace("{text}", text)


def _chat(processor: Any, text: str, with_picture: bool = True) -> str:
    content = [*([{"type": "image"}] if with_picture else []), {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
