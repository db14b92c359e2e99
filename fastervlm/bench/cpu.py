"""What this machine's processor can do, measured on blocks like those of the models: products, attention, reading weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastervlm.bench.device_spec import CPU, DeviceSpec
from fastervlm.bench.flops import block_macs, layer_macs

ROWS = (64, 128, 320, 640)
_COPIES = 3  # of a block, so that its weights do not stay in the processor's caches
_PROJECTOR, _MEMORY = 0.85, 0.7  # shares that are not measured: of the products, and of reading by one-row products


def measured_cpu(dtype: torch.dtype, seconds: float = 0.5, tower: int = 1024, width: int = 2048, side: int = 24) -> DeviceSpec:
    """This machine, by what blocks of a tower and of a language model reach of a product of 640 rows.

    Args:
        dtype: of weights and states.
        seconds: how long each of the eight things is measured.
        tower: width of a tower's blocks, ViT-L's if left out.
        width: of a language model's layers, that of a Llama of 1 B if left out.
        side: rows and columns of the patches that the tower's blocks see.
    """
    name = str(dtype).removeprefix("torch.")
    matrices = [torch.randn(11 * width // 4, width).to(dtype) for _ in range(2 * _COPIES)]
    many, one = torch.randn(ROWS[-1], width).to(dtype), torch.randn(1, width).to(dtype)
    products = _calls_per_s([partial(F.linear, many, matrix) for matrix in matrices], seconds)
    reads = _calls_per_s([partial(F.linear, one, matrix) for matrix in matrices], seconds)
    peak = products * 2 * matrices[0].numel() * len(many)
    shares = {kind: rate / peak for kind, rate in _towers(dtype, tower, side, seconds).items()}
    layers = _layers(dtype, width, seconds)
    shares |= {"projector": _PROJECTOR, "memory": _MEMORY, "prefill": layers[ROWS[-1]] / peak}
    rows = {count: rate / layers[ROWS[-1]] for count, rate in layers.items()}
    return DeviceSpec(CPU, "cpu", {name: peak}, reads * matrices[0].nbytes, shares, rows=rows)


def _towers(dtype: torch.dtype, width: int, side: int, seconds: float) -> dict[str, float]:
    """Operations per second of a tower's blocks, with the attention of torch and with that which gives its maps."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    states, heads, rates = torch.randn(1, side**2 + 1, width).to(dtype), max(1, width // 64), {}
    for kind, attention in (("encoder", "sdpa"), ("eager", "eager")):
        config: Any = CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads, image_size=side, patch_size=1
        )
        config._attn_implementation = attention
        blocks = _made(partial(CLIPEncoderLayer, config), dtype)
        calls = _calls_per_s([partial(block, states, None) for block in blocks], seconds)
        rates[kind] = calls * 2 * block_macs(config)
    return rates


def _layers(dtype: torch.dtype, width: int, seconds: float) -> dict[int, float]:
    """Operations per second of a language model's layers, by the rows they see."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    heads = max(1, width // 64)
    config: Any = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_attention_heads=heads, num_key_value_heads=heads
    )
    config._attn_implementation = "sdpa"
    layers, rotary, rates = _made(partial(LlamaDecoderLayer, config, 0), dtype), LlamaRotaryEmbedding(config), {}
    for rows in ROWS:
        states, places = torch.randn(1, rows, width).to(dtype), torch.arange(rows)[None]
        given = {"position_embeddings": rotary(states, places), "position_ids": places}
        calls = [partial(layer, states, **given) for layer in layers]
        rates[rows] = _calls_per_s(calls, seconds) * 2 * layer_macs(config, rows)
    return rates


def _made(make: Callable[[], nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    return [make().to(dtype).eval() for _ in range(_COPIES)]


@torch.inference_mode()
def _calls_per_s(calls: Sequence[Callable[[], Tensor]], seconds: float) -> float:
    """By the median time of a call; each is made once before the clock starts."""
    for call in calls:
        call()
    times: list[float] = []
    begin = time.perf_counter()
    for call in cycle(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > seconds:
            break
    return 1 / median(times)
