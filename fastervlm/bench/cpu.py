"""What this machine's processor can do, measured on blocks like those of the models: products, attention, reading weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastervlm.bench.device_spec import CPU, DeviceSpec
from fastervlm.bench.fit import Seen, fit
from fastervlm.bench.flops import block_macs, layer_macs, tower_attention
from fastervlm.bench.terms import BLOCK_LAUNCHES, LAYER_LAUNCHES, Term

ROWS = (64, 128, 320, 640)
_COPIES = 3  # of a block, so that its weights do not stay in the processor's caches
_SHARES = dict.fromkeys(
    ("encoder", "projector", "prefill", "attention", "maps", "causal", "weights", "memory", "launches"), 0.5
)


def measured_cpu(dtype: torch.dtype, seconds: float = 0.4, tower: int = 1024, width: int = 2048, side: int = 24) -> DeviceSpec:
    """This machine, by what it takes for blocks of a tower and of a language model, their attention, and single products.

    Args:
        dtype: of weights and states.
        seconds: how long each of a dozen things is measured.
        tower: width of a tower's blocks, ViT-L's if left out.
        width: of a language model's layers, that of a Llama of 1 B if left out.
        side: rows and columns of the patches that the tower's blocks see.
    """
    name = str(dtype).removeprefix("torch.")
    matrices = [torch.randn(11 * width // 4, width).to(dtype) for _ in range(2 * _COPIES)]
    taken = {rows: _seconds(_products(matrices, rows, dtype), seconds) for rows in (1, ROWS[-1])}
    narrow = [torch.randn(width, tower).to(dtype) for _ in range(2 * _COPIES)]
    seen: list[Seen] = [
        ([Term("", "", "memory", matrices[0].nbytes)], taken[1]),
        (
            [
                Term("", "", "projector", 2 * side**2 * narrow[0].numel()),
                Term("", "", "weights", narrow[0].nbytes),
            ],
            _seconds(_products(narrow, side**2, dtype), seconds),
        ),
        *_towers(dtype, tower, side, seconds),
        *_layers(dtype, width, seconds),
    ]
    peak, reads = 2 * matrices[0].numel() * ROWS[-1] / taken[ROWS[-1]], matrices[0].nbytes / taken[1]
    small = _layer_seconds(dtype, 64, 1, seconds)[0]
    device = DeviceSpec(CPU, "cpu", {name: peak}, reads, LAYER_LAUNCHES / small, _SHARES | {"launches": 1.0})
    return fit(device, name, seen)


def _products(matrices: Sequence[Tensor], rows: int, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    states = torch.randn(rows, matrices[0].shape[1]).to(dtype)
    return [partial(F.linear, states, matrix) for matrix in matrices]


def _attention(dtype: torch.dtype, width: int, tokens: int, causal: bool, seconds: float) -> float:
    """Seconds of attention alone, with heads of 64."""
    heads = max(1, width // 64)
    given = [torch.randn(1, heads, tokens, width // heads).to(dtype) for _ in range(3)]
    return _seconds([partial(F.scaled_dot_product_attention, *given, is_causal=causal)], seconds)


def _towers(dtype: torch.dtype, width: int, side: int, seconds: float) -> Iterator[Seen]:
    """A tower's blocks, with the attention of torch and with that which gives its maps, and attention alone."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    states = torch.randn(1, side**2 + 1, width).to(dtype)
    for share, implementation in (("attention", "sdpa"), ("maps", "eager")):
        config: Any = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=max(1, width // 64),
            image_size=side,
            patch_size=1,
        )
        config._attn_implementation = implementation
        blocks, attention = _made(partial(CLIPEncoderLayer, config), dtype), tower_attention(config, 1)
        terms = _terms("encoder", block_macs(config) - attention, share, attention, blocks[0], BLOCK_LAUNCHES)
        yield terms, _seconds([partial(block, states, None) for block in blocks], seconds)
        if share == "attention":
            yield [Term("", "", share, 2 * attention)], _attention(dtype, width, side**2 + 1, False, seconds)


def _layers(dtype: torch.dtype, width: int, seconds: float) -> Iterator[Seen]:
    """A language model's layers with more and more rows, and attention alone."""
    for rows in ROWS:
        taken, layer, config = _layer_seconds(dtype, width, rows, seconds)
        attention = 2 * width * rows**2
        yield _terms("prefill", layer_macs(config, rows) - attention, "causal", attention, layer, LAYER_LAUNCHES), taken
    yield [Term("", "", "causal", 4 * width * ROWS[-1] ** 2)], _attention(dtype, width, ROWS[-1], True, seconds)


def _layer_seconds(dtype: torch.dtype, width: int, rows: int, seconds: float) -> tuple[float, nn.Module, Any]:
    """Seconds of a layer of a Llama, the layer, and its config."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    heads = max(1, width // 64)
    config: Any = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_attention_heads=heads, num_key_value_heads=heads
    )
    config._attn_implementation = "sdpa"
    layers, rotary = _made(partial(LlamaDecoderLayer, config, 0), dtype), LlamaRotaryEmbedding(config)
    states, places = torch.randn(1, rows, width).to(dtype), torch.arange(rows)[None]
    given = {"position_embeddings": rotary(states, places), "position_ids": places}
    return _seconds([partial(layer, states, **given) for layer in layers], seconds), layers[0], config


def _terms(products: str, macs: int, attention: str, attention_macs: int, module: nn.Module, launches: int) -> list[Term]:
    weights = sum(parameter.nbytes for parameter in module.parameters())
    return [
        Term("", "", products, 2 * macs),
        Term("", "", attention, 2 * attention_macs),
        Term("", "", "weights", weights),
        Term("", "", "launches", launches),
    ]


def _made(make: Callable[[], nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    return [make().to(dtype).eval() for _ in range(_COPIES)]


@torch.inference_mode()
def _seconds(calls: Sequence[Callable[[], Tensor]], seconds: float) -> float:
    """The median of a call's times; each is made once before the clock starts."""
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
    return median(times)
