"""A thousand pruned calls leave nothing behind."""

import ctypes
import gc
from collections import Counter
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import SHAPES, Shape
from playground.bench_floor import TARGETS, memory
from tests.support import plain, tiny

CALLS, WARM = 1000, 50


def prune(model, *arguments, **settings) -> Any:
    """The model pruned, what its stock methods do left out: they are not ours."""
    handle: Any = fastervlm.prune(model, *arguments, **settings)
    handle.host.own = {"forward": lambda **call: {}, "generate": lambda **call: call["input_ids"]}
    return handle


def objects():
    """How many objects of each kind the collector knows, tensors among them."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects())


class Allocated(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def allocated():
    """Bytes that are allocated and not freed, whatever the process held before."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Allocated
    found = ask()
    return found.uordblks + found.hblkhd


def grown(call):
    """What `call`, done CALLS times after WARM times that do not count, leaves behind: objects by kind, and bytes.

    A few hundred objects may be those of another module that was imported meanwhile.
    """
    for _ in range(WARM):
        call()
    before, held = objects(), allocated()
    for _ in range(CALLS):
        call()
    return {kind: count for kind, count in (objects() - before).items() if count > CALLS // 2}, allocated() - held


@pytest.mark.parametrize(("method", "what"), [("cls", "generate"), ("visionzip", "forward")])
@torch.no_grad()
def test_calls_leave_nothing_behind(method, what):
    """A tensor kept of each call would be a thousand objects, and its pixels 12 MB."""
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["one"])
    handle = prune(model, 5, method=method)
    objects_left, bytes_left = grown(lambda: getattr(model, what)(**batch))
    assert len(handle.trace) == 1
    assert objects_left == {}
    assert bytes_left < 8 << 20


@torch.no_grad()
def test_handles_leave_nothing_behind():
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["one"])
    before = dict(vars(model))

    def call():
        handle: Any = fastervlm.prune(model, 5)
        handle.host.encode(handle.model, handle.pruning, {"pixel_values": batch["pixel_values"]})
        handle.remove()

    objects_left, bytes_left = grown(call)
    assert objects_left == {}
    assert bytes_left < 8 << 20
    assert vars(model) == before


def test_a_leak_would_be_seen():
    kept, pixels = [], torch.zeros(3, 32, 32)
    objects_left, bytes_left = grown(lambda: kept.append(pixels.clone()))
    assert objects_left["Tensor"] == CALLS
    assert bytes_left > 8 << 20


@pytest.mark.slow
@torch.inference_mode()
def test_a_large_tower_takes_no_more_memory_for_five_crops_than_the_stock_one():
    shape = Shape("large tower", "llava", SHAPES["llava-1.5-1b"].tower, SHAPES["tiny"].decoder)
    held = memory(random_model(shape, torch.bfloat16, torch.device("cpu")), 58)
    assert 0 < held["pruned"] <= TARGETS["memory_ratio"] * held["stock"]
