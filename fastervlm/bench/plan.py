"""Predicted times: operations, weights and launches of a stage one after the other on a CPU, the longest of them on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from encoders.errors import UserError
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.flops import Job, Route
from fastervlm.bench.shapes import Shape
from fastervlm.bench.terms import STEP, terms_of

ROUTES: dict[str, Route] = {
    "none": "stock",
    "cls": "pruned",
    "coverage": "features",
    "fastv": "fastv",
    "eager-maps": "reference",
}
OTHER_NAMES = {"stock": "none", "reference-route": "eager-maps"}  # by which methods may be asked for too
_FLOORS = ("weights", "launches")


@dataclass(frozen=True)
class Prediction:
    """Seconds of one call up to its first token, and of one step of decoding behind it.

    Attributes:
        parts: of each stage (encoder, projector, prefill, step), the seconds of what it waits for.
        floor: what reading the language model's weights once takes, or beginning its operators; no prefill of a GPU is shorter.
        rest: image processing and what lies between the stages, where the device was calibrated.
        factors: by what compiling multiplies stages, see `DeviceSpec.compiled`; empty where that is not known or cannot be.
    """

    parts: dict[str, dict[str, float]]
    floor: float
    rest: float
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of encoder, projector and prefill."""
        return {stage: sum(parts.values()) for stage, parts in self.parts.items() if stage != STEP}

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return sum(self.stages.values()) + self.rest

    @property
    def step(self) -> float:
        """Seconds of one step of decoding, a token for each prompt."""
        return sum(self.parts[STEP].values())

    @property
    def compiled(self) -> tuple[float, float | None] | None:
        """Seconds to the first token and of a step, both compiled; None where nothing is known of that, or of steps."""
        if not self.factors:
            return None
        factors = {"projector": self.factors["encoder"], **self.factors}
        first = sum(factors[stage] * seconds for stage, seconds in self.stages.items()) + self.rest
        return first, factors[STEP] * self.step if STEP in factors else None

    @property
    def at_floor(self) -> bool:
        """Whether the prefill waits for weights or launches alone, so that fewer tokens make it no shorter."""
        return not self.parts["prefill"].keys() - {"weights", "launches"}

    @property
    def bound(self) -> tuple[str, float]:
        """The part that most of the time to the first token goes to, and its share of that time.

        tower, projector and prefill: matrix products of these; attention, weights and launches: of all stages; rest.
        """
        found = {"rest": self.rest}
        for stage in self.stages:
            for part, seconds in self.parts[stage].items():
                found[part] = found.get(part, 0.0) + seconds
        return _most(found)

    @property
    def step_bound(self) -> tuple[str, float]:
        """The same of a step of decoding: products, attention (reading the KV cache), weights, launches."""
        return _most(self.parts[STEP])


def _most(parts: dict[str, float]) -> tuple[str, float]:
    name = max(parts, key=lambda name: parts[name])
    return name, parts[name] / sum(parts.values())


def predict(device: DeviceSpec, config: Any, job: Job, dtype: str) -> Prediction:
    """The times of a call on a device, for a config of transformers."""
    terms, parts = terms_of(config, job, dtype), dict[str, dict[str, float]]()
    for term, seconds in device.seconds(terms, dtype):
        of_stage = parts.setdefault(term.stage, {})
        of_stage[term.part] = of_stage.get(term.part, 0.0) + seconds
    least = [term for term in terms if term.stage == "prefill" and term.part in _FLOORS]
    floor = sum(seconds for _, seconds in device.seconds(least, dtype))
    factors = device.compiled if job.route in ("pruned", "features") else {}
    return Prediction(parts, floor, device.image_s * job.batch + device.overhead_s, factors)


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

    def at_floor(self, batch: int) -> tuple[int, Prediction] | None:
        """The most tokens of each picture, crop or frame at which the prefill is at its floor, and what is predicted there.

        None if it never is.
        """
        for kept in range(self.shape.num_visual_tokens, 0, -1):
            job = job_of(self.shape, self.shape.family.usual_method, kept, batch, self.text_tokens)
            predicted = predict(self.device, self.shape.config, job, self.dtype)
            if predicted.at_floor:
                return kept, predicted
        return None

    def useless_below(self, batch: int) -> int:
        """That number of tokens; 0 if it never is."""
        found = self.at_floor(batch)
        return found[0] if found else 0


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
