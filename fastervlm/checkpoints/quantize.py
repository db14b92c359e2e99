"""Weights of 4 and 8 bits, by bitsandbytes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from encoders import UserError
from fastervlm.checkpoints.models import empty_model
from fastervlm.reporting.extras import need

_QUANTIZED = "model.language_model.layers."


def check_quantize(quantize: str | None) -> None:
    """Refuse a kind that is not there, or one whose libraries are not."""
    if quantize not in (None, "4bit", "8bit"):
        raise UserError(f"quantize={quantize!r} is not known; choose one of 4bit, 8bit.")
    if quantize is not None:
        need("bitsandbytes accelerate", "quant", f"A model with {quantize} weights")


def quantization(config: Any, quantize: str, dtype: torch.dtype) -> Any:
    """How bitsandbytes is to quantize, as LLaVA's authors do: the layers of the language model and nothing else.

    Layers that do not divide into its blocks of 64 inputs and 32 outputs, which it cannot run on every CPU, stay as they are.
    """
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports each layer's cast to float16 in each call
    layers = {name: layer for name, layer in empty_model(config, dtype).named_modules() if isinstance(layer, nn.Linear)}
    whole = [
        name
        for name, layer in layers.items()
        if not name.startswith(_QUANTIZED) or layer.in_features % 64 or layer.out_features % 32
    ]
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=whole,
    )
