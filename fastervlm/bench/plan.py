"""Predicted times by the roofline: a stage takes as long as its operations or as reading its weights, whichever is longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encoders.errors import UserError
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import BYTES
from fastervlm.bench.flops import Job, Route, work
from fastervlm.bench.shapes import Shape

ROUTES: dict[str, Route] = {
    "none": "stock",
    "cls": "pruned",
    "coverage": "features",
    "fastv": "fastv",
    "eager-maps": "reference",
}
OTHER_NAMES = {"stock": "none", "reference-route": "eager-maps"}  # by which methods may be asked for too


@dataclass(frozen=True)
class Prediction:
    """Seconds of one call up to its first token.

    Attributes:
        stages: encoder, projector, prefill.
        floor: what reading the language model's weights once takes; its prefill cannot be shorter.
        rest: image processing and what lies between the stages, where the device was calibrated.
    """

    stages: dict[str, float]
    floor: float
    rest: float

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return sum(self.stages.values()) + self.rest

    @property
    def at_floor(self) -> bool:
        """Whether the prefill takes no longer than reading the weights, so that fewer tokens make it no shorter."""
        return self.stages["prefill"] <= self.floor


def predict(device: DeviceSpec, config: Any, job: Job, dtype: str) -> Prediction:
    """The times of a call on a device, for a config of transformers."""
    done = work(config, job)
    compute = {
        stage: 2 * macs / device.rate(dtype, kind_of(stage, job), rows_of(stage, job)) for stage, macs in done.macs.items()
    }
    reading = {stage: BYTES[dtype] * count / device.reads_per_s for stage, count in done.parameters.items()}
    stages = {stage: max(seconds, reading[stage]) for stage, seconds in compute.items()}
    return Prediction(stages, reading["prefill"], device.image_s * job.batch + device.overhead_s)


def kind_of(stage: str, job: Job) -> str:
    """By which efficiency a stage is predicted: a tower that gives all maps has one of its own."""
    return "eager" if stage == "encoder" and job.route == "reference" else stage


def rows_of(stage: str, job: Job) -> int | None:
    """How many rows the products of a prefill have, under FastV those of most of its layers; None of other stages."""
    return job.batch * job.left if stage == "prefill" else None


def job_of(shape: Shape, method: str, kept: int, batch: int, text_tokens: int = 64, layer: int = 2) -> Job:
    """What a call has to do. Of LLaVA-NeXT all newlines are taken to stay, of which pruning takes some off.

    Raises:
        UserError: the method's work has no formula.
    """
    route = ROUTES[_known([method])[0]]
    whole = text_tokens + shape.parts * shape.num_visual_tokens + shape.separators
    left = text_tokens + shape.parts * kept
    if route in ("stock", "fastv"):
        return Job(route, kept, shape.parts, whole, left if route == "fastv" else whole, batch, layer)
    left += shape.separators if route in ("pruned", "features") and shape.family.parts == "crops" else 0
    return Job(route, kept, shape.parts, left, left, batch)


def _known(methods: Sequence[str]) -> list[str]:
    """The names by which methods are told; refuses those that have no formula."""
    names = [OTHER_NAMES.get(method, method) for method in methods]
    if other := [name for name in names if name not in ROUTES]:
        raise UserError(f"There is no plan for method {other[0]!r}; choose from: {', '.join(ROUTES)}.")
    return names


@dataclass(frozen=True)
class PlanRow:
    """A method at a number of tokens and a batch size, and what is predicted for it."""

    method: str
    kept: int
    batch: int
    job: Job
    predicted: Prediction


@dataclass(frozen=True)
class Plan:
    """Predictions for a shape on a device; for each batch size the first row is the unpruned model."""

    shape: Shape
    device: DeviceSpec
    dtype: str
    text_tokens: int
    rows: Sequence[PlanRow]

    def base(self, row: PlanRow) -> PlanRow:
        """The unpruned row of the same batch size."""
        return next(each for each in self.rows if each.job.route == "stock" and each.batch == row.batch)

    def useless_below(self, batch: int) -> int:
        """The most tokens of each picture, crop or frame at which the prefill is at its floor; 0 if it never is."""
        for kept in range(self.shape.num_visual_tokens, 0, -1):
            job = job_of(self.shape, self.shape.family.usual_method, kept, batch, self.text_tokens)
            if predict(self.device, self.shape.config, job, self.dtype).at_floor:
                return kept
        return 0


def plan(
    shape: Shape,
    device: DeviceSpec,
    dtype: str,
    methods: Sequence[str],
    counts: Sequence[int],
    batches: Sequence[int],
    text_tokens: int = 64,
    layer: int = 2,
) -> Plan:
    """Predict the unpruned model, and each method at each number of tokens below all, for each batch size."""
    total = shape.num_visual_tokens
    rows = []
    for batch in dict.fromkeys(batches):
        cases = [("none", total)]
        cases += [(method, kept) for method in _known(methods) if method != "none" for kept in counts if kept < total]
        for method, kept in cases:
            job = job_of(shape, method, kept, batch, text_tokens, layer)
            rows.append(PlanRow(method, kept, batch, job, predict(device, shape.config, job, dtype)))
    return Plan(shape, device, dtype, text_tokens, rows)
