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
    """A function `(text, shown=1)` from the question's text to the whole prompt about so many of an "image" or a "video".

    Without a mode it is the processor's chat template, if there is one.
    """
    has_template = bool(getattr(processor, "chat_template", None))
    token = getattr(processor, f"{kind}_token", f"<{kind}>")
    mode = mode or ("chat" if has_template or token != f"<{kind}>" else "vicuna_v1")
    if mode in TEMPLATES:
        if token != f"<{kind}>":
            raise UserError(f"--conv-mode {mode} places <{kind}> where this model reads {token}; use --conv-mode chat.")
        return functools.partial(_fill, TEMPLATES[mode].replace("<image>", f"<{kind}>"), f"<{kind}>\n")
    if not has_template:
        other = "use --conv-mode vicuna_v1" if token == f"<{kind}>" else "put its chat_template.jinja into the model's folder"
        raise UserError(f"The model's processor has no chat template; {other}.")
    return functools.partial(_chat, processor, kind)


def _fill(template: str, placeholder: str, text: str, shown: int = 1) -> str:
    return template.replace(placeholder, placeholder * shown).replace("{text}", text)


def _chat(processor: Any, kind: str, text: str, shown: int = 1) -> str:
    content = [*[{"type": kind}] * shown, {"type": "text", "text": text}]
    try:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise UserError(
            f"The chat template of the model's processor cannot be used ({reason(error)}); use --conv-mode vicuna_v1."
        ) from error
    token = getattr(processor, f"{kind}_token")
    if shown and token not in prompt:
        raise UserError(f"The chat template of the model's processor places no <{kind}>; use --conv-mode vicuna_v1.")
    if token in text and token != f"<{kind}>":  # which those who read questions refuse
        raise UserError(f"The question holds {token}, at which the model would look for a picture; remove it.")
    return prompt
