"""What devices can do: rates of matrix products and of memory, and which share of them a stage of a model reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from encoders.errors import UserError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
CPU = "cpu-measured"

# Shares of the peak that eager transformers models reach, by stage; `--calibrate` replaces these guesses by measured ones.
# The reference's tower ("eager") also writes and reads its attention maps.
_GPU = {"encoder": 0.5, "eager": 0.35, "projector": 0.6, "prefill": 0.6, "memory": 0.8}


@dataclass(frozen=True)
class DeviceSpec:
    """A device.

    Attributes:
        name: what it is called on the command line.
        kind: the type of its torch device.
        flops_per_s: floating point operations per second of dense matrix products, by dtype.
        bytes_per_s: what its memory reads per second.
        efficiency: which share of these is reached: of the first by stages, of the second by `memory`.
        rows: which share of its rate a prefill keeps that has only so many rows; without it, all of it.
        image_s: seconds of image processing for one prompt; unknown, and so 0, before calibration.
        overhead_s: seconds of what lies between the stages of one call; likewise.
    """

    name: str
    kind: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    efficiency: Mapping[str, float] = field(default_factory=lambda: _GPU)
    rows: Mapping[int, float] = field(default_factory=dict)
    image_s: float = 0.0
    overhead_s: float = 0.0

    def rate(self, dtype: str, stage: str, rows: int | None = None) -> float:
        """Operations per second that a stage reaches, a prefill with that many rows."""
        return self.peak(dtype, rows) * self.efficiency[stage]

    def peak(self, dtype: str, rows: int | None = None) -> float:
        """Operations per second of products with that many rows, or with as many as it takes."""
        if dtype not in self.flops_per_s:
            raise UserError(f"dtype={dtype!r} is not known for {self.name}; choose one of {', '.join(self.flops_per_s)}.")
        share = (
            1.0 if rows is None or not self.rows else np.interp(np.log(rows), np.log(list(self.rows)), [*self.rows.values()])
        )
        return self.flops_per_s[dtype] * float(share)

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
    """The device of that name; `cpu-measured` is this machine, measured in that dtype for some seconds.

    Raises:
        UserError: there is no such device or dtype.
    """
    if dtype not in BYTES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(BYTES)}.")
    if name == CPU:
        from fastervlm.bench import cpu

        return cpu.measured_cpu(getattr(torch, dtype))
    if name not in SPECS:
        raise UserError(f"There is no device {name!r}; choose one of: {', '.join((*SPECS, CPU))}.")
    return SPECS[name]
