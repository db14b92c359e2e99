"""Our options on an architecture of vLLM that knows nothing of them: an error, where vLLM alone warns and prunes nothing."""

# pyright: reportMissingImports=false
from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vllm.multimodal.processing import InputProcessingContext

from fastervlm.serving.options import VISUAL_TOKENS


def guard() -> None:
    """Have vLLM refuse `visual_tokens` in `mm_processor_kwargs`, of a server or a request, for all architectures but ours.

    Ours take the option out before it gets there. A second call does nothing.
    """
    stock = InputProcessingContext.get_merged_mm_kwargs
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def checked(self: InputProcessingContext, *args: Any, **kwargs: Any) -> dict[str, Any]:
        merged = stock(self, *args, **kwargs)
        if VISUAL_TOKENS in merged:
            raise ValueError(_refusal(self.model_config.hf_config))
        return merged

    InputProcessingContext.get_merged_mm_kwargs = checked


def _refusal(config: Any) -> str:
    """Why the option is refused, and what to do about it."""
    from fastervlm.serving.architectures import ARCHITECTURES

    found, pruned = (getattr(config, "architectures", None) or ["model"])[0], ARCHITECTURES.get(config.model_type)
    if pruned is None:
        return f"{VISUAL_TOKENS} is an option of fastervlm, which cannot prune a {found} in vLLM; leave it out."
    overrides: Mapping[str, list[str]] = {"architectures": [pruned.name]}
    return (
        f"{VISUAL_TOKENS} is an option of fastervlm's {pruned.name}, but this server runs vLLM's own {found}, which would "
        f"ignore it. Start it by fastervlm serve, or with --hf-overrides '{str(overrides).replace(chr(39), chr(34))}'."
    )
