"""Measuring how fast a model gives its first token and those after it, pruned in several ways, in turns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.bench.answer import answer
from fastervlm.bench.compiled import compiled_or_why_not
from fastervlm.bench.flops import work
from fastervlm.bench.speed_table import DECODE, SAMPLES, Speed, SpeedRow
from fastervlm.bench.stages import StageClock
from fastervlm.bench.table import KV_CACHE, PEAK_MEMORY, TIME_TO_FIRST_TOKEN, TOTAL_TIME
from fastervlm.bench.variants import Variant
from fastervlm.bench.workload import Workload, check_numbers
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.measure import FirstTokenClock, Spread, cache_bytes, flop_counter, peak_bytes
from fastervlm.reporting.progress import track
from fastervlm.reporting.provenance import machine, program


def speed(
    workload: Workload, variants: Sequence[Variant], *, repeats: int = 5, new_tokens: int = 64, compiling: bool = False
) -> Speed:
    """Measure each variant: time to the first token and its stages, decoding, memory, work.

    First comes a round that counts operations and memory, and warms up. Then each round times every variant twice in turns: a
    whole answer without any hook, and the stages of the first token with hooks. Every second round goes backwards.

    Args:
        workload: the model and what it is asked.
        variants: what is compared; the first of each batch size is the unpruned model.
        repeats: rounds.
        new_tokens: length of each timed answer.
        compiling: afterwards, measure each variant that can be compiled with and without that, see `compiled`.

    Raises:
        UserError: a number below 1, a variant that this model cannot run, or an unpruned model that does not fit into memory.
    """
    check_numbers(repeats=repeats, new_tokens=new_tokens)
    for variant in variants:
        with variant.entered(workload):
            pass  # a model that cannot be pruned so is refused before anything runs
    load = os.getloadavg()[0]
    counts, fitting, failures = _count_all(workload, variants)
    measured: list[dict[str, list[float]]] = [{} for _ in fitting]
    orders = (range(len(fitting))[:: 1 - 2 * (turn % 2)] for turn in range(repeats))
    timed = [i for order in orders for i in order]
    for i in track(timed, "time measurements", len(timed)):
        for name, value in (_time(workload, fitting[i], new_tokens) | _stages(workload, fitting[i])).items():
            measured[i].setdefault(name, []).append(value)
    told: list[Any] = [None] * len(fitting)
    if compiling:
        told = [
            compiled_or_why_not(workload, each, repeats, new_tokens)
            for each in track(fitting, "variants compiled", len(fitting))
        ]
    rows = [
        SpeedRow(variant, count, {name: Spread(values) for name, values in each.items()}, more)
        for variant, count, each, more in zip(fitting, counts, measured, told, strict=True)
    ]
    about = {
        **_about(workload),
        "repeats": repeats,
        "new_tokens": new_tokens,
        "load_average": {"begin": load, "end": os.getloadavg()[0]},
    }
    return Speed(about, rows, failures)


def _about(workload: Workload) -> dict[str, Any]:
    """What a reader needs to judge the numbers, besides the settings of the run."""
    model = workload.model
    return {
        "model": workload.name,
        "shape": None if workload.shape is None else workload.shape.name,
        "llm_layers": model.config.text_config.num_hidden_layers,
        "random_weights": workload.shape is not None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config.text_config._attn_implementation,
        "text_tokens": workload.text_tokens,
        "parts": workload.parts,
        "num_visual_tokens": workload.num_visual_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": model.get_memory_footprint(),
        **program(),
        **machine(workload.device),
    }


def _count_all(
    workload: Workload, variants: Sequence[Variant]
) -> tuple[list[dict[str, Any]], list[Variant], list[dict[str, Any]]]:
    """Work and memory of each variant, the variants that fit into the device's memory, and what is told of the others."""
    counts, fitting, failures = [], [], []
    for variant in track(variants, "variants counted", len(variants)):
        try:
            counts.append(_count(workload, variant))
            fitting.append(variant)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            failures.append({"method": variant.method, "visual_token_num": variant.kept, "batch": variant.batch})
    whole = {variant.batch for variant in fitting if variant.pruner is None and variant.kept == workload.num_visual_tokens}
    if lost := [variant.batch for variant in variants if variant.batch not in whole]:
        raise UserError(f"The unpruned model does not fit into the device's memory at batch {lost[0]}; use smaller batches.")
    return counts, fitting, failures


def _count(workload: Workload, variant: Variant) -> dict[str, Any]:
    """Operations counted and by formula, prompt lengths, KV cache and peak memory up to the first token."""
    inputs = workload.process(variant.batch)
    with variant.entered(workload) as call, flop_counter() as counter:
        cache = _answer(workload, call(inputs), 1)[CACHE]
    with variant.entered(workload) as call:
        peak = peak_bytes(workload.device, lambda: _answer(workload, call(inputs), 1))
    # Layers that carry a state have no keys, and those that see a window no more than it.
    lengths = [layer.keys.shape[2] for layer in cache.layers if getattr(layer, "keys", None) is not None]
    job = variant.job(workload, max(lengths), lengths[-1])
    macs = None if job is None else work(workload.model.config, job)
    return {
        "prompt_tokens": max(lengths),
        "job": None if job is None else asdict(job),
        "macs": None if macs is None else macs.macs | {"total": macs.total_macs},
        "flops": {"formula": None if macs is None else macs.total_flops, "counted": counter.get_total_flops()},
        PEAK_MEMORY: peak,
        KV_CACHE: cache_bytes(cache),
    }


def _time(workload: Workload, variant: Variant, new_tokens: int) -> dict[str, float]:
    """A whole answer: pictures and text processed, first token, decoding; nothing is hooked."""
    clock = FirstTokenClock(workload.device)
    with variant.entered(workload) as call:
        clock.start()
        _answer(workload, call(workload.process(variant.batch)), new_tokens, clock)
        total = clock.stop()
    first = clock.seconds or 0.0
    found = {TIME_TO_FIRST_TOKEN: first, TOTAL_TIME: total, SAMPLES: variant.batch / total}
    return found if new_tokens == 1 else found | {DECODE: variant.batch * (new_tokens - 1) / (total - first)}


def _stages(workload: Workload, variant: Variant) -> dict[str, float]:
    with variant.entered(workload) as call, StageClock(workload.model) as clock:
        clock.mark("image_processing")
        inputs = workload.process(variant.batch)
        clock.mark("splice")
        _answer(workload, call(inputs), 1, clock)
    return clock.seconds


def _answer(workload: Workload, call: dict[str, Any], new_tokens: int, *clocks: Any) -> Any:
    return answer(workload.model, call, new_tokens, workload.processor.tokenizer.pad_token_id, *clocks)
