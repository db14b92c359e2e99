"""A device's efficiencies fitted to a benchmark of speed, and how well each of its rows is then predicted by the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.bench.compiled import ALL, ENCODER, PLAIN, STEP_TIME
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import SPECS, known
from fastervlm.bench.fit import Seen, fit
from fastervlm.bench.flops import STAGES, Job, has_formula
from fastervlm.bench.plan import OTHER_NAMES, ROUTES, Prediction, predict
from fastervlm.bench.shapes import SHAPES, Shape
from fastervlm.bench.table import TIME_TO_FIRST_TOKEN
from fastervlm.bench.terms import STEP, by_stage, terms_of
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
        step: median seconds of one step of decoding, a token for each prompt, where that was measured.
        compiled: median seconds to the first token (and of a step) by what is compiled, see `fastervlm.bench.compiled`.
    """

    method: str
    job: Job
    first_token: float
    stages: dict[str, float]
    step: float | None = None
    compiled: dict[str, dict[str, float]] | None = None


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
        shape = SHAPES[told["shape"]].with_layers(told.get("llm_layers"))
        rows = [_row(told, row, job) for row in told["rows"] if (job := _job(told, row))]
        if not rows:
            raise KeyError("rows")
        where = {name: told[name] for name in ("processor", "threads") if name in told}
        return Measured(shape, told["dtype"], str(told["device"]), rows, where)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The file {path} holds no benchmark of a shape; give what fastervlm bench shape wrote.") from error


def _job(told: dict[str, Any], row: dict[str, Any]) -> Job | None:
    """What a call of the row does; None where nobody knows. Of choosing by features there is a formula but for the choice."""
    route = ROUTES.get(row["method"])
    if row["job"] or route is None or "parts" not in told or not has_formula(SHAPES[told["shape"]].config, route):
        return row["job"] and Job(**row["job"])
    length = row["prompt_tokens"]
    return Job(route, row["visual_token_num"], told["parts"], length, length, row["batch"])


def _row(told: dict[str, Any], row: dict[str, Any], job: Job) -> MeasuredRow:
    method, decode = str(row["method"]), row.get("decode_tokens_per_s")
    stages = {name: float(spread["median"]) for name, spread in row["stages_s"].items()}
    if not {*STAGES, *_BETWEEN, "image_processing"} <= stages.keys() or min(stages[name] for name in STAGES) <= 0:
        raise ValueError("stages")
    return MeasuredRow(
        OTHER_NAMES.get(method, method),
        job,
        row["time_to_first_token_s"]["median"],
        stages,
        decode and row["batch"] / decode["median"],
        _medians(row.get("compiled", {})),
    )


def _medians(told: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    if TIME_TO_FIRST_TOKEN not in told:
        return None
    kinds = [kind for kind in (TIME_TO_FIRST_TOKEN, STEP_TIME) if kind in told]
    return {kind: {way: spread["median"] for way, spread in told[kind].items()} for kind in kinds}


def calibrate(device: DeviceSpec, bench: Measured, rows: Sequence[MeasuredRow] | None = None) -> DeviceSpec:
    """The device with the shares by which stages, steps of decoding and whole times come out as they were measured.

    Image processing and what lies between the stages are medians. What no row tells stays as it was.

    Args:
        device: whose rates are taken as they are.
        bench: what was measured, on such a device.
        rows: only these rows of it.

    Raises:
        UserError: the benchmark ran on a device of another kind.
    """
    check_device(device.name, device.kind, bench)
    rows = bench.rows if rows is None else rows
    device = replace(
        device,
        image_s=median(row.stages["image_processing"] / row.job.batch for row in rows),
        overhead_s=median(sum(row.stages[name] for name in _BETWEEN) for row in rows),
        compiled=_factors(rows) or device.compiled,
    )
    return fit(device, bench.dtype, [seen for row in rows for seen in _seen(device, bench, row)])


def _factors(rows: Sequence[MeasuredRow]) -> dict[str, float]:
    """By what compiling multiplied stages and steps, medians of the rows where each was measured; empty without any."""
    found: dict[str, list[float]] = {"encoder": [], "prefill": [], STEP: []}
    for row in rows:
        if row.compiled is not None:
            first = row.compiled[TIME_TO_FIRST_TOKEN]
            front = row.stages["encoder"] + row.stages["projector"]
            found["encoder"].append(1 - (first[PLAIN] - first[ENCODER]) / front)
            found["prefill"].append(1 - (first[ENCODER] - first[ALL]) / row.stages["prefill"])
            if (step := row.compiled.get(STEP_TIME)) is not None:
                found[STEP].append(step[ALL] / step[PLAIN])
    return {name: max(median(factors), 0.0) for name, factors in found.items() if factors}


def check_device(device: str, kind: str, bench: Measured) -> None:
    """Refuse a benchmark of a device of another kind, of another GPU than the one of `SPECS`, or of another processor.

    Args:
        device: what the device is called.
        kind: the type of its torch device.
        bench: what was measured.

    Raises:
        UserError: it is one of these.
    """
    if bench.device.partition(":")[0].partition(" ")[0] != kind or (device in SPECS and known(bench.device) != device):
        raise UserError(f"The benchmark ran on {bench.device}, which is not like {device}; choose another --device-spec.")
    here = machine(torch.device("cpu"))
    told = {name: value for name, value in bench.machine.items() if kind == "cpu" and value != here[name]}
    if told:
        there = ", ".join(f"{name} {value}" for name, value in told.items())
        raise UserError(f"The benchmark ran on another machine than this ({there}); run it here with as many threads.")


def _seen(device: DeviceSpec, bench: Measured, row: MeasuredRow) -> Iterator[Seen]:
    """Each stage of a row, its step of decoding, and the whole time to the first token."""
    terms = by_stage(terms_of(bench.shape.config, row.job, bench.dtype))
    step = terms.pop(STEP)
    for stage, each in terms.items():
        yield each, row.stages[stage]
    if row.step is not None:
        yield step, row.step
    rest = device.image_s * row.job.batch + device.overhead_s
    if rest < row.first_token:
        yield [term for each in terms.values() for term in each], row.first_token - rest


@dataclass(frozen=True)
class Check:
    """A measured row and what was predicted for it.

    Attributes:
        row: what was measured.
        before: predicted without calibration.
        after: predicted by a device calibrated to the other rows alone.
    """

    row: MeasuredRow
    before: Prediction
    after: Prediction

    @property
    def error(self) -> float:
        """Relative error of the calibrated time to the first token; positive if it is too long."""
        return self.after.first_token / self.row.first_token - 1

    @property
    def error_before(self) -> float:
        """The same without calibration."""
        return self.before.first_token / self.row.first_token - 1

    @property
    def step_error(self) -> float:
        """Relative error of a calibrated step of decoding; 0 where none was measured."""
        return self.after.step / self.row.step - 1 if self.row.step else 0.0

    @property
    def compiled(self) -> tuple[float, float] | None:
        """Measured and calibrated seconds to the first token of the compiled model; None where one is not known."""
        if self.row.compiled is None or self.after.compiled is None:
            return None
        return self.row.compiled[TIME_TO_FIRST_TOKEN][ALL], self.after.compiled[0]

    @property
    def compiled_error(self) -> float | None:
        """Relative error of that calibrated time."""
        return self.compiled and self.compiled[1] / self.compiled[0] - 1


def check(device: DeviceSpec, bench: Measured) -> list[Check]:
    """Each row predicted by the device as it is, and as the other rows calibrate it (of a single row, as itself does)."""
    checks = []
    for row in bench.rows:
        others = [other for other in bench.rows if other is not row] or [row]
        fitted = calibrate(device, bench, others)
        checks.append(Check(row, *(predict(each, bench.shape.config, row.job, bench.dtype) for each in (device, fitted))))
    return checks
