"""The devices that plans are made for, by name."""

from __future__ import annotations

import re

import torch

from encoders.errors import UserError
from fastervlm.bench import cpu
from fastervlm.bench.device_spec import CPU, DeviceSpec
from fastervlm.bench.terms import BYTES

_LAUNCHES = 50_000.0  # operators that Python and eager transformers begin per second, about 20 µs each; a guess


def _gpu(name: str, half: float, single: float, memory: float) -> DeviceSpec:
    """Of TFLOP/s in 16 and in 32 bits, and TB/s."""
    rates = {"float16": half * 1e12, "bfloat16": half * 1e12, "float32": single * 1e12}
    return DeviceSpec(name, "cuda", rates, memory * 1e12, _LAUNCHES)


# The vendor's data sheets: dense tensor cores in 16 bits that add up in 32, without sparsity; 32 bits without tensor cores.
SPECS = {
    "h200": _gpu("h200", 989.4, 66.9, 4.8),  # SXM, 141 GB
    "h100": _gpu("h100", 989.4, 66.9, 3.35),  # SXM, 80 GB
    "a100": _gpu("a100", 312.0, 19.5, 2.04),  # SXM, 80 GB
    "l4": _gpu("l4", 121.0, 30.3, 0.3),
    "rtx4090": _gpu("rtx4090", 165.2, 82.6, 1.008),
}


def known(model: str) -> str | None:
    """The name of the GPU that torch calls `model`, by whole words (an L40S is no L4); None where it is none of `SPECS`.

    A slice of a GPU (MIG) is none, nor is that of a laptop or the RTX 4090 D.
    """
    words = re.split(r"[^a-z0-9]+", model.lower().replace("rtx ", "rtx"))
    if {"mig", "laptop", "d"} & {*words}:
        return None
    return next((name for name in SPECS if name in words), None)


def get_spec(name: str, dtype: str) -> DeviceSpec:
    """The device of that name; `cpu-measured` is this machine, measured in that dtype for some seconds.

    Raises:
        UserError: there is no such device or dtype.
    """
    if dtype not in BYTES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(BYTES)}.")
    if name == CPU:
        return cpu.measured_cpu(getattr(torch, dtype))
    if name not in SPECS:
        raise UserError(f"There is no device {name!r}; choose one of: {', '.join((*SPECS, CPU))}.")
    return SPECS[name]
