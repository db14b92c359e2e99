"""What a device can do: rates of matrix products and of memory, and which share of them a stage of a model reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from encoders.errors import UserError

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
