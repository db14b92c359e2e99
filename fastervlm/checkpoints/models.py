"""The classes of the models, and models of them without weights."""

from __future__ import annotations

from typing import Any

import torch

from fastervlm.families.registry import family_of_type


def model_class(config: Any) -> Any:
    """The class of the model that a config of transformers describes."""
    return family_of_type(config.model_type).model_class(config)


def empty_model(config: Any, dtype: torch.dtype | None) -> Any:
    """The model of a config without memory for its weights; its computed tables are in place, on the CPU."""
    with torch.device("meta"):
        model = model_class(config)._from_config(config, dtype=dtype)
    for owner in model.modules():
        for name, table in owner.named_buffers(recurse=False):
            setattr(owner, name, torch.empty_like(table, device="cpu"))
    model.initialize_weights()  # nothing is done to weights that have no memory
    return model
