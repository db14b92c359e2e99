"""Attention maps of a language model, one layer at a time.

Dims: R rows, T tokens, M heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encoders import UserError, UserTypeError
from fastervlm.generation.kv_cache import cache_in
from fastervlm.inllm.attention_row import rotate, split_heads
from fastervlm.inllm.handle import DECODERS

_BACKENDS = ("sdpa", "eager")


@contextmanager
def attention_maps(model: Any, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While it lasts, each layer of the language model hands its attention map to `see` when it reads a whole prompt.

    `see(layer, attention)` gets the map (R, T, T) in float32, a mean over the heads: a row for each query, a column for each
    key. It is computed beside the model from the layer's own queries and keys, head by head, and dropped when `see` returns;
    the model goes on with the attention backend it has.

    Raises:
        UserTypeError: the model has no language model of a supported kind.
        UserError: its attention backend is another than sdpa or eager.
    """
    decoder: Any = getattr(getattr(model, "model", None), "language_model", None)
    if not {cls.__name__ for cls in type(decoder).__mro__} & set(DECODERS):
        raise UserTypeError(
            f"The attention of a {type(model).__name__} with a {type(decoder).__name__} cannot be read; supported language "
            f"models are {', '.join(DECODERS)}."
        )
    backend = decoder.config._attn_implementation
    if backend not in _BACKENDS:
        raise UserError(f"Attention maps cannot be read beside attn_implementation={backend!r}; load the model with 'sdpa'.")
    with ExitStack() as stack:
        for layer, block in enumerate(decoder.layers):
            hook = block.self_attn.register_forward_pre_hook(partial(_hand_over, see, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield


@torch.no_grad()
def _hand_over(see: Callable[[int, Tensor], None], layer: int, attention: Any, args: Any, inputs: dict[str, Any]) -> None:
    states = inputs["hidden_states"] if "hidden_states" in inputs else args[0]
    cache = cache_in(inputs)
    if cache is not None and cache.get_seq_length(layer) > 0:
        raise UserError("Attention maps are those of whole prompts; call the model without the KV cache.")
    see(layer, _attention_map(attention, states, inputs["position_embeddings"], inputs.get("attention_mask")))


def _attention_map(attention: Any, states: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """(R, T, T) of a layer whose normed input is states (R, T, D), under a mask (R or 1, 1, T, T) or the causal one."""
    queries, keys = (rotate(split_heads(attention, which, states), *rotary).float() for which in "qk")
    hidden = _as_bias(mask, states)
    share = queries.shape[2] // keys.shape[2]
    total = torch.zeros(hidden.shape[-2:], device=states.device).expand(len(states), -1, -1).clone()
    for head in range(queries.shape[2]):
        scores = queries[:, :, head] @ keys[:, :, head // share].transpose(1, 2)
        total += torch.softmax(scores.mul_(attention.scaling).add_(hidden), dim=-1)
    return total / queries.shape[2]


def _as_bias(mask: Tensor | None, states: Tensor) -> Tensor:
    """What is added to scores (R, T, T), very low where a query may not look: such a row of nothing else is even."""
    if mask is None:
        visible = torch.ones(states.shape[1], states.shape[1], dtype=torch.bool, device=states.device).tril()[None]
    elif mask.dtype == torch.bool:
        visible = mask[:, 0]
    else:
        return mask[:, 0].float()
    return torch.zeros(visible.shape, device=states.device).masked_fill(~visible, torch.finfo(torch.float32).min)
