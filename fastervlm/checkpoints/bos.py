"""The token that begins a text (BOS): put there by the tokenizer or written by the chat template, and only once.

Processors of transformers leave it to whichever does it. Where one part writes the prompt and another tokenizes it, as in
vLLM's server, there may be none or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TRIAL = "x"


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts the BOS token in front of a text."""
    ids = tokenizer(_TRIAL)["input_ids"]
    return tokenizer.bos_token is not None and len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def special_tokens(tokenizer: Any, prompts: Sequence[str]) -> dict[str, bool]:
    """What to tell a tokenizer of prompts that a chat template may have written: those that begin with BOS get no second one.

    So `apply_chat_template(tokenize=True)` of transformers does it.
    """
    begin = tokenizer.bos_token
    return {"add_special_tokens": False} if begin and all(prompt.startswith(begin) for prompt in prompts) else {}


def template_with_bos(processor: Any) -> str | None:
    """The processor's chat template with the BOS token written in front, for a server that tokenizes without it.

    None where there is nothing to write: there is no template, it writes the token itself, or the tokenizer adds none.
    """
    template, tokenizer = getattr(processor, "chat_template", None), getattr(processor, "tokenizer", processor)
    if not isinstance(template, str) or not adds_bos(tokenizer) or _writes_bos(processor, tokenizer.bos_token):
        return None
    return "{{ bos_token }}" + template


def _writes_bos(processor: Any, bos: str) -> bool:
    """Whether a chat begins with the BOS token; True too where the template cannot be used, which a server tells by itself."""
    for content in ([{"type": "text", "text": _TRIAL}], _TRIAL):
        try:
            return processor.apply_chat_template([{"role": "user", "content": content}]).startswith(bos)
        except Exception:  # a template may raise anything
            continue
    return True
