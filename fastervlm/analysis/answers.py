"""A model's answer, and the sequence of prompt and answer read once more with its attention maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastervlm.analysis.attention import attention_maps
from fastervlm.eval.answerer import GREEDY


@dataclass(frozen=True)
class Answered:
    """One prompt with its greedy answer.

    Attributes:
        ids: (T,) the prompt, then the answer without the end token.
        prompt: how many of them are the prompt.
        pictures: the model's other inputs.
    """

    ids: Tensor
    prompt: int
    pictures: dict[str, Any]


@torch.no_grad()
def answer(model: Any, inputs: Any, max_new_tokens: int) -> Answered:
    """Answer one prompt, `inputs` of the processor; image placeholders are never written."""
    given = dict(inputs.to(model.device, model.dtype))
    prompt = given["input_ids"].shape[1]
    ids = model.generate(
        **given,
        **GREEDY,
        max_new_tokens=max_new_tokens,
        suppress_tokens=[model.config.image_token_id],
    )[0]
    ends = model.generation_config.eos_token_id
    if len(ids) > prompt and ids[-1].item() in (ends if isinstance(ends, list) else [ends]):
        ids = ids[:-1]
    return Answered(ids, prompt, {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")})


@torch.no_grad()
def read_again(model: Any, answered: Answered, see: Callable[[int, Tensor], None]) -> None:
    """Run prompt and answer through the model, where each layer's map (1, T, T) goes to `see`; see `attention_maps`."""
    ids = answered.ids[None]
    with attention_maps(model, see):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **answered.pictures, use_cache=False, logits_to_keep=1)
