"""What `generate` has to tell or to let pass when it runs a model that is pruned inside its language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.generation import GenerationMode

from encoders import UserError
from fastervlm.generation.kv_cache import cache_in
from fastervlm.inllm.prompt import remember_prompt_length


def _prepare_cache_for_generation(self: Any, config: Any, model_kwargs: dict[str, Any], mode: Any, *args: Any) -> Any:
    """As it was, and note how long the prompt is: guesses may be read with it, or it may be cut into chunks."""
    past = cache_in(model_kwargs)
    guessing = mode == GenerationMode.ASSISTED_GENERATION
    if past is not None and past.get_seq_length() > 0 and (guessing or config.use_cache is False):
        raise UserError(
            "A KV cache cannot be continued with use_cache=False, prompt lookup or an assistant model; "
            "leave that out, or start again without the KV cache."
        )
    result = type(self)._prepare_cache_for_generation(self, config, model_kwargs, mode, *args)
    cache, mask = cache_in(model_kwargs), model_kwargs.get("attention_mask")
    length = getattr(config, "_mask_length", None) if mask is None else mask.shape[1]  # masks of ones are taken away before
    if cache is not None and length is not None and cache.get_seq_length() == 0:
        remember_prompt_length(cache, length)
    return result


def _validate_model_kwargs(self: Any, model_kwargs: dict[str, Any]) -> None:
    """As it was, but `selector_ids` are welcome."""
    known = {name: value for name, value in model_kwargs.items() if name != "selector_ids"}
    type(self)._validate_model_kwargs(self, known)


METHODS_OF_GENERATE: dict[str, Callable[..., Any]] = {
    "_prepare_cache_for_generation": _prepare_cache_for_generation,
    "_validate_model_kwargs": _validate_model_kwargs,
}
