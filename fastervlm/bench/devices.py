"""What devices can do: rates of matrix products and of memory, and which share of them a stage of a model reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle
from statistics import median

import torch
from torch.nn import functional as F

from encoders.errors import UserError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
CPU = "cpu-measured"

# Shares of the peak that eager transformers models reach, by stage; `--calibrate` replaces these guesses by measured ones.
# The reference's tower ("eager") also writes and reads its attention maps.
_GPU = {"encoder": 0.5, "eager": 0.35, "projector": 0.6, "prefill": 0.6, "memory": 0.8}
# On the CPU the peak is itself a measured matrix product; towers spend more of their time on activations and norms.
_CPU = {"encoder": 0.6, "eager": 0.55, "projector": 0.85, "prefill": 0.9, "memory": 0.7}


@dataclass(frozen=True)
class DeviceSpec:
    """A device.

    Attributes:
        name: what it is called on the command line.
        kind: the type of its torch device.
        flops_per_s: floating point operations per second of dense matrix products, by dtype.
        bytes_per_s: what its memory reads per second.
        efficiency: which share of these is reached: of the first by stages, of the second by `memory`.
        image_s: seconds of image processing for one prompt; unknown, and so 0, before calibration.
        overhead_s: seconds of what lies between the stages of one call; likewise.
    """

    name: str
    kind: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    efficiency: Mapping[str, float] = field(default_factory=lambda: _GPU)
    image_s: float = 0.0
    overhead_s: float = 0.0

    def rate(self, dtype: str, stage: str) -> float:
        """Operations per second that a stage reaches."""
        if dtype not in self.flops_per_s:
            raise UserError(f"dtype={dtype!r} is not known for {self.name}; choose one of {', '.join(self.flops_per_s)}.")
        return self.flops_per_s[dtype] * self.efficiency[stage]

    @property
    def reads_per_s(self) -> float:
        """Bytes per second that weights are read with."""
        return self.bytes_per_s * self.efficiency["memory"]

    def fitted(self, **changes: float) -> DeviceSpec:
        """The same with other shares, by name."""
        return replace(self, efficiency={**self.efficiency, **changes})


def _gpu(name: str, half: float, single: float, memory: float) -> DeviceSpec:
    """Of TFLOP/s in 16 and in 32 bits, and TB/s."""
    rates = {"float16": half * 1e12, "bfloat16": half * 1e12, "float32": single * 1e12}
    return DeviceSpec(name, "cuda", rates, memory * 1e12)


# The vendor's data sheets: dense tensor cores in 16 bits that add up in 32, without sparsity; 32 bits without tensor cores.
SPECS = {
    "h100": _gpu("h100", 989.4, 66.9, 3.35),  # SXM, 80 GB
    "a100": _gpu("a100", 312.0, 19.5, 2.04),  # SXM, 80 GB
    "l4": _gpu("l4", 121.0, 30.3, 0.3),
    "rtx4090": _gpu("rtx4090", 165.2, 82.6, 1.008),
}


def get_spec(name: str, dtype: str) -> DeviceSpec:
    """The device of that name; `cpu-measured` is this machine, whose rates in that dtype are measured for a second.

    Raises:
        UserError: there is no such device or dtype.
    """
    if dtype not in BYTES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(BYTES)}.")
    if name == CPU:
        return measured_cpu(getattr(torch, dtype))
    if name not in SPECS:
        raise UserError(f"There is no device {name!r}; choose one of: {', '.join((*SPECS, CPU))}.")
    return SPECS[name]


def measured_cpu(dtype: torch.dtype, seconds: float = 0.5, width: int = 2048, inner: int = 5632) -> DeviceSpec:
    """This machine, by products with matrices (inner, width) too many for its caches: of 640 rows, and of one.

    Args:
        dtype: of rows and matrices.
        seconds: how long each of the two is measured.
        width: of the rows.
        inner: of the products.
    """
    matrices = [torch.randn(inner, width).to(dtype) for _ in range(6)]
    many, one = torch.randn(640, width).to(dtype), torch.randn(1, width).to(dtype)
    each, size = 2 * inner * width, matrices[0].nbytes
    products = _calls_per_s(lambda matrix: F.linear(many, matrix), matrices, seconds)
    reads = _calls_per_s(lambda matrix: F.linear(one, matrix), matrices, seconds)
    name = str(dtype).removeprefix("torch.")
    return DeviceSpec(CPU, "cpu", {name: products * each * len(many)}, reads * size, _CPU)


@torch.no_grad()
def _calls_per_s(call: Callable[[torch.Tensor], object], matrices: list[torch.Tensor], seconds: float) -> float:
    """By the median time of a call; each matrix is used once before the clock starts."""
    for matrix in matrices:
        call(matrix)
    times: list[float] = []
    begin = time.perf_counter()
    for matrix in cycle(matrices):
        start = time.perf_counter()
        call(matrix)
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > seconds:
            break
    return 1 / median(times)
