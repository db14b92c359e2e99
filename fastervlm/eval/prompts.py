"""Prompt templates (`--conv-mode`): how a question is put to the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from encoders.errors import UserError
from fastervlm.checkpoints.errors import reason
from fastervlm.checkpoints.templates import LLAVA_V1, VICUNA_V1

TEMPLATES = {"vicuna_v1": VICUNA_V1, "llava_v1": LLAVA_V1}
CONV_MODES = (*TEMPLATES, "chat")


def conversation(processor: Any, mode: str | None, kind: str = "image") -> Callable[..., str]:
    """A function `(text, with_picture=True)` from the question's text to the whole prompt about an "image" or a "video".

    Without a mode it is the processor's chat template, if there is one.
    """
    has_template = bool(getattr(processor, "chat_template", None))
    mode = mode or ("chat" if has_template else "vicuna_v1")
    if mode in TEMPLATES:
        return functools.partial(_fill, TEMPLATES[mode].replace("<image>", f"<{kind}>"), f"<{kind}>\n")
    if not has_template:
        raise UserError("The model's processor has no chat template; use --conv-mode vicuna_v1.")
    return functools.partial(_chat, processor, kind)


def _fill(template: str, shown: str, text: str, with_picture: bool = True) -> str:
    return (template if with_picture else template.replace(shown, "")).replace("{text}", text)


def _chat(processor: Any, kind: str, text: str, with_picture: bool = True) -> str:
    content = [*([{"type": kind}] if with_picture else []), {"type": "text", "text": text}]
    try:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise UserError(
            f"The chat template of the model's processor cannot be used ({reason(error)}); use --conv-mode vicuna_v1."
        ) from error
    if with_picture and getattr(processor, f"{kind}_token") not in prompt:
        raise UserError(f"The chat template of the model's processor places no <{kind}>; use --conv-mode vicuna_v1.")
    return prompt
