"""What vLLM loads in each of its processes by the entry point group `vllm.general_plugins`; nothing heavy is imported here."""

from __future__ import annotations

import logging

from fastervlm.serving.architectures import ARCHITECTURES


def register() -> None:
    """Tell vLLM the pruned architectures, and have it refuse our options where another architecture would ignore them.

    vLLM runs this for all that it serves, so a vLLM that is too old or too new for it is left as it is, with a warning.
    """
    try:
        from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

        from fastervlm.serving.vllm_models.guard import guard
    except ImportError as error:
        logging.getLogger(__name__).warning("fastervlm cannot prune in this vLLM: %s.", error)
        return
    known = ModelRegistry.get_supported_archs()
    for each in ARCHITECTURES.values():
        if each.name not in known:
            ModelRegistry.register_model(each.name, each.where)
    guard()
