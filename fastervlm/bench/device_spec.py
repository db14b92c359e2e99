"""What a device can do: rates of products, of memory and of launches, and which share of them a part of a call reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from encoders.errors import UserError
from fastervlm.bench.terms import Term, by_stage

CPU = "cpu-measured"

# Shares that eager transformers models reach on a GPU; `--calibrate` replaces these guesses by measured ones.
_GPU = {
    "encoder": 0.5,
    "projector": 0.6,
    "prefill": 0.6,
    "attention": 0.5,
    "maps": 0.08,
    "causal": 0.6,
    "weights": 0.8,
    "memory": 0.8,
    "launches": 1.0,
}
_BYTES = ("weights", "memory")


@dataclass(frozen=True)
class DeviceSpec:
    """A device.

    Attributes:
        name: what it is called on the command line.
        kind: the type of its torch device. A GPU launches, reads and computes at the same time, a CPU one after the other.
        flops_per_s: floating point operations per second of dense matrix products, by dtype.
        bytes_per_s: what its memory reads per second.
        launches_per_s: how many operators of a model it begins per second, with the Python around them.
        efficiency: which share of these is reached. Of the first: encoder, projector and prefill by products, attention by
            the tower's, maps by that of a tower that gives its maps, causal by the language model's. Of the second: weights by
            those of products of many rows (which a CPU also lays out for them), memory by those of one row. And launches.
        image_s: seconds of image processing for one prompt; unknown, and so 0, before calibration.
        overhead_s: seconds of what lies between the stages of one call; likewise.
        compiled: by what compiling multiplies the seconds of the encoder and projector ("encoder"), of the prefill and of a
            step, where that was measured.
    """

    name: str
    kind: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    launches_per_s: float
    efficiency: Mapping[str, float] = field(default_factory=lambda: _GPU)
    image_s: float = 0.0
    overhead_s: float = 0.0
    compiled: Mapping[str, float] = field(default_factory=dict)

    def rate(self, share: str, dtype: str) -> float:
        """How much of it is done per second: operations, bytes or launches."""
        if dtype not in self.flops_per_s:
            raise UserError(f"dtype={dtype!r} is not known for {self.name}; choose one of {', '.join(self.flops_per_s)}.")
        whole = self.bytes_per_s if share in _BYTES else self.flops_per_s[dtype]
        return (self.launches_per_s if share == "launches" else whole) * self.efficiency[share]

    def seconds(self, terms: Iterable[Term], dtype: str) -> list[tuple[Term, float]]:
        """The terms that a call waits for, with their seconds: all on a CPU, the longest of each stage on a GPU."""
        found = []
        for each in by_stage(terms).values():
            told = [(term, term.amount / self.rate(term.share, dtype)) for term in each if term.amount]
            found += _longest(told) if self.kind == "cuda" else told
        return found

    def fitted(self, **changes: float) -> DeviceSpec:
        """The same with other shares, by name."""
        return replace(self, efficiency={**self.efficiency, **changes})


def _longest(told: list[tuple[Term, float]]) -> list[tuple[Term, float]]:
    """Of what goes on at the same time in a stage: launching, reading weights and the KV cache, or computing."""
    ways: dict[str, list[tuple[Term, float]]] = {}
    for term, seconds in told:
        way = "launches" if term.share == "launches" else "bytes" if term.share in _BYTES else "products"
        ways.setdefault(way, []).append((term, seconds))
    return max(ways.values(), key=lambda way: sum(seconds for _, seconds in way))
