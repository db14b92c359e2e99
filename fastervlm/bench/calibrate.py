"""A device's efficiencies fitted to a benchmark of speed, and how well each of its rows is then predicted by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import BYTES, SPECS
from fastervlm.bench.flops import STAGES, Job, work
from fastervlm.bench.plan import OTHER_NAMES, kind_of, predict, rows_of
from fastervlm.bench.shapes import SHAPES, Shape
from fastervlm.reporting.files import parse_json, read_file
from fastervlm.reporting.provenance import machine

_BETWEEN = ("selection", "splice")


@dataclass(frozen=True)
class MeasuredRow:
    """A row of a benchmark whose work has a formula.

    Attributes:
        method: its method.
        job: what a call of it does.
        first_token: median seconds to the first token.
        stages: median seconds of each stage.
        decode: seconds of one step of decoding and the bytes it reads, where that was measured.
    """

    method: str
    job: Job
    first_token: float
    stages: dict[str, float]
    decode: tuple[float, int] | None = None


@dataclass(frozen=True)
class Measured:
    """A benchmark of speed, read from its file."""

    shape: Shape
    dtype: str
    device: str
    rows: Sequence[MeasuredRow]
    machine: dict[str, Any] = field(default_factory=dict)


def read_bench(path: Path) -> Measured:
    """What `fastervlm bench shape` wrote.

    Raises:
        UserError: the file is none of it.
    """
    content = read_file(path)
    try:
        told = parse_json(content)
        shape = SHAPES[told["shape"]]
        rows = [_row(shape, told, row) for row in told["rows"] if row["job"]]
        if not rows:
            raise KeyError("rows")
        where = {name: told[name] for name in ("processor", "threads") if name in told}
        return Measured(shape, told["dtype"], str(told["device"]), rows, where)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The file {path} holds no benchmark of a shape; give what fastervlm bench shape wrote.") from error


def _row(shape: Shape, told: dict[str, Any], row: dict[str, Any]) -> MeasuredRow:
    method = str(row["method"])
    job, decode = Job(**row["job"]), row.get("decode_tokens_per_s")
    stages = {name: float(spread["median"]) for name, spread in row["stages_s"].items()}
    if not {*STAGES, *_BETWEEN, "image_processing"} <= stages.keys() or min(stages[name] for name in STAGES) <= 0:
        raise ValueError("stages")
    weights = work(shape.config, job).parameters["prefill"] * BYTES[told["dtype"]]
    return MeasuredRow(
        OTHER_NAMES.get(method, method),
        job,
        row["time_to_first_token_s"]["median"],
        stages,
        decode and (row["batch"] / decode["median"], weights + row["kv_cache_bytes"]),
    )


def calibrate(device: DeviceSpec, bench: Measured, rows: Sequence[MeasuredRow] | None = None) -> DeviceSpec:
    """The device with efficiencies at which the roofline gives the median of what was measured.

    A stage that computes gives its own efficiency, a prefill at its floor and each step of decoding that of the memory, image
    processing and what lies between the stages their seconds. What no row tells stays as it was.

    Args:
        device: whose rates are taken as they are.
        bench: what was measured, on such a device.
        rows: only these rows of it.

    Raises:
        UserError: the benchmark ran on a device of another kind.
    """
    check_device(device.name, device.kind, bench)
    rows = bench.rows if rows is None else rows
    for _ in range(3):  # which stages compute and which read depends on the efficiencies
        found: dict[str, list[float]] = {}
        for row in rows:
            for name, share in _shares(device, bench, row):
                found.setdefault(name, []).append(share)
        device = device.fitted(**{name: median(shares) for name, shares in found.items()})
    return replace(
        device,
        image_s=median(row.stages["image_processing"] / row.job.batch for row in rows),
        overhead_s=median(sum(row.stages[name] for name in _BETWEEN) for row in rows),
    )


def check_device(device: str, kind: str, bench: Measured) -> None:
    """Refuse a benchmark of a device of another kind, of a GPU that is another one of `SPECS`, or of another processor.

    Args:
        device: what the device is called.
        kind: the type of its torch device.
        bench: what was measured.
    """
    model = bench.device.lower().replace(" ", "")
    others = [name for name in SPECS if name in model and name != device]
    if bench.device.partition(":")[0].partition(" ")[0] != kind or (others and device in SPECS):
        raise UserError(f"The benchmark ran on {bench.device}, which is not like {device}; choose another --device-spec.")
    here = machine(torch.device("cpu"))
    told = {name: value for name, value in bench.machine.items() if kind == "cpu" and value != here[name]}
    if told:
        there = ", ".join(f"{name} {value}" for name, value in told.items())
        raise UserError(f"The benchmark ran on another machine than this ({there}); run it here with as many threads.")


def _shares(device: DeviceSpec, bench: Measured, row: MeasuredRow) -> list[tuple[str, float]]:
    """Which efficiencies a row tells, and what they would be by it."""
    done, size, shares = work(bench.shape.config, row.job), BYTES[bench.dtype], []
    for stage, macs in done.macs.items():
        kind, rows, seconds = kind_of(stage, row.job), rows_of(stage, row.job), row.stages[stage]
        compute, reading = 2 * macs / device.rate(bench.dtype, kind, rows), size * done.parameters[stage] / device.reads_per_s
        if compute > reading:
            shares.append((kind, 2 * macs / device.peak(bench.dtype, rows) / seconds))
        elif stage == "prefill":
            shares.append(("memory", size * done.parameters[stage] / device.bytes_per_s / seconds))
    if row.decode is not None:
        seconds, read = row.decode
        shares.append(("memory", read / device.bytes_per_s / seconds))
    return shares


@dataclass(frozen=True)
class Check:
    """A measured row and what was predicted for it, in seconds to the first token.

    Attributes:
        row: what was measured.
        before: predicted without calibration.
        after: predicted by a device calibrated to the other rows alone.
    """

    row: MeasuredRow
    before: float
    after: float

    @property
    def error(self) -> float:
        """Relative error of the calibrated prediction; positive if it is too long."""
        return self.after / self.row.first_token - 1

    @property
    def error_before(self) -> float:
        """The same without calibration."""
        return self.before / self.row.first_token - 1


def check(device: DeviceSpec, bench: Measured) -> list[Check]:
    """Each row predicted by the device as it is, and as the other rows calibrate it (of a single row, as itself does)."""
    first_token = partial(predict, config=bench.shape.config, dtype=bench.dtype)
    checks = []
    for row in bench.rows:
        others = [other for other in bench.rows if other is not row] or [row]
        fitted = calibrate(device, bench, others)
        checks.append(Check(row, *(first_token(each, job=row.job).first_token for each in (device, fitted))))
    return checks
