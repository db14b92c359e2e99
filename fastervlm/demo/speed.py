"""Whether pruning was faster, from runs that took turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RUNS = 7
AGREE = 6  # of the runs, before any difference is claimed: chance alone does that in 1 of 16
LEAST = 1.05  # by which the medians must differ


@dataclass(frozen=True)
class Speed:
    """How the times of two models compare that ran one after the other, again and again.

    Attributes:
        ratio: the median time of the first over that of the second; above 1 the second is faster.
        low: the least ratio of a pair of runs.
        high: the greatest.
        runs: how many pairs.
        verdict: in words, what the runs show; a difference is claimed where the medians differ by `LEAST` and `AGREE` of
            `RUNS` pairs agree.
    """

    ratio: float
    low: float
    high: float
    runs: int
    verdict: str

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Speed:
        """Of the seconds of each run without and with pruning, in the order in which they ran."""
        ratios = [full / few for full, few in zip(before, after, strict=True)]
        ratio = median(before) / median(after)
        return cls(ratio, min(ratios), max(ratios), len(ratios), _verdict(ratio, ratios))

    @property
    def spread(self) -> str:
        """The least and the greatest ratio, in words."""
        return f"{self.low:.1f} to {self.high:.1f} in {self.runs} runs"


def _verdict(ratio: float, ratios: list[float]) -> str:
    most = len(ratios) * AGREE / RUNS
    if ratio >= LEAST:
        return "faster" if sum(each > 1 for each in ratios) >= most else "not clearly faster"
    if ratio <= 1 / LEAST and sum(each < 1 for each in ratios) >= most:
        return "slower"
    return "no faster"
