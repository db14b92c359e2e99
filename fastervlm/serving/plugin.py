"""What vLLM loads in each of its processes by the entry point group `vllm.general_plugins`; nothing heavy is imported here."""

from __future__ import annotations

from fastervlm.serving.architectures import ARCHITECTURES


def register() -> None:
    """Tell vLLM the pruned architectures, and have it refuse our options where another architecture would ignore them."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    from fastervlm.serving.vllm_models.guard import guard

    known = ModelRegistry.get_supported_archs()
    for each in ARCHITECTURES.values():
        if each.name not in known:
            ModelRegistry.register_model(each.name, each.where)
    guard()
