"""The result of a benchmark: table, numbers, plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastervlm.eval.score import Score
from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.tables import markdown_table

TIME_TO_FIRST_TOKEN = "time_to_first_token_s"
TOTAL_TIME = "total_time_s"
PEAK_MEMORY = "peak_memory_bytes"
KV_CACHE = "kv_cache_bytes"

# Heading and factor of each quantity.
_SHOWN = {
    TIME_TO_FIRST_TOKEN: ("TTFT (ms)", 1e3),
    TOTAL_TIME: ("total time (ms)", 1e3),
    PEAK_MEMORY: ("peak memory (MB)", 1e-6),
    KV_CACHE: ("KV cache (MB)", 1e-6),
}
_TIMES = (TIME_TO_FIRST_TOKEN, TOTAL_TIME)
_ALLOCATOR = {
    "cpu": "the profiler's record of torch's CPU allocator",
    "cuda": "the statistics of torch's CUDA allocator",
}


@dataclass(frozen=True)
class Row:
    """The score of a method at a budget, and the spread of each measured quantity."""

    method: str
    visual_tokens: int
    score: Score
    measured: dict[str, Spread]

    def summary(self, base: Row) -> dict[str, Any]:
        """The row for a JSON file, with ratios to `base`."""
        numbers = {
            name: {**spread.summary(), "ratio": spread.ratio(base.measured[name])} for name, spread in self.measured.items()
        }
        return {
            "method": self.method,
            "visual_token_num": self.visual_tokens,
            "score": self.score.summary(),
            **numbers,
        }

    def cells(self, base: Row, quartiles: bool) -> list[str]:
        """The row of the table; after each median the ratio to `base`."""
        half = (self.score.high - self.score.low) / 2
        shown = [self._cell(name, base, quartiles) for name in _SHOWN]
        return [self.method, str(self.visual_tokens), f"{self.score.value:.1f} ± {half:.1f}", *shown]

    def _cell(self, name: str, base: Row, quartiles: bool) -> str:
        spread, factor = self.measured[name], _SHOWN[name][1]
        low, high = (factor * quartile for quartile in spread.quartiles)
        between = f" ({low:.1f}–{high:.1f})" if quartiles and name in _TIMES else ""
        return f"{factor * spread.median:.2f}{between} ×{spread.ratio(base.measured[name]):.2f}"


@dataclass(frozen=True)
class Bench:
    """All rows of one model, of which the first is the model as it is.

    `about` is what a reader needs to judge the numbers and make them again; `failures` are the questions that could not be
    asked.
    """

    about: dict[str, Any]
    rows: Sequence[Row]
    failures: list[dict[str, Any]] = field(default_factory=list)

    def table(self, quartiles: bool = False) -> tuple[list[str], list[list[str]]]:
        """Header and rows; with the quartiles of times it is wider than most terminals."""
        headings = [heading for heading, _ in _SHOWN.values()]
        headers = ["method", "tokens", self.rows[0].score.metric, *headings]
        return headers, [row.cells(self.rows[0], quartiles) for row in self.rows]

    def write(self, folder: Path) -> None:
        """Write bench.md, bench.json and bench.png."""
        write_text(folder / "bench.md", f"{markdown_table(*self.table(quartiles=True))}\n{self._note()}\n")
        rows = [row.summary(self.rows[0]) for row in self.rows]
        write_json(
            folder / "bench.json",
            {**self.about, "memory": memory_in_words(self.about["device"]), "rows": rows, "failures": self.failures},
        )
        draw_panels(self._panels(), folder / "bench.png")

    def _note(self) -> str:
        about, score = self.about, self.rows[0].score
        weights = f"{about['quantize']} and " if about["quantize"] else ""
        crops = "; tokens are those of each crop" if about["anyres"] else ""
        return (
            f"{score.metric} of {about['model']} in percent, with half the width of its 95 % bootstrap interval, on "
            f"{score.samples} questions{crops}. Time and memory: {about['samples']} questions, each asked alone with its "
            f"inputs ready and answered in exactly {about['new_tokens']} tokens, on {about['device']} in "
            f"{weights}{about['dtype']}; times are medians (and quartiles) of {about['repeats']} rounds in turns after one "
            "that warms up. ×: the median ratio to the first row, pair by pair. TTFT: time to first token. Peak memory: "
            f"{memory_in_words(about['device'])} (weights: {about['weights_bytes'] / 1e6:.1f} MB). KV cache: keys and values "
            "of the prompt."
        )

    def _panels(self) -> list[Panel]:
        full = self.rows[0]
        curves = {name: [row for row in self.rows if row.method in (full.method, name)] for name in self._methods()}
        scores = []
        for method, rows in curves.items():
            values = [row.score for row in rows]
            low, high = [score.low for score in values], [score.high for score in values]
            scores.append(Curve(method, _tokens(rows), [score.value for score in values], low, high))
        metric = full.score.metric
        panels = [Panel(f"{metric} of {self.about['model']}", "visual tokens", f"{metric} (%)", scores)]
        for name, (heading, factor) in _SHOWN.items():
            lines = [_curve(method, rows, name, factor) for method, rows in curves.items()]
            panels.append(Panel(heading.partition(" (")[0], "visual tokens", heading, lines, from_zero=True))
        return panels

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows[1:])) or [self.rows[0].method]


def memory_in_words(device: str) -> str:
    """What peak memory is on a device of that name, in words."""
    allocator = _ALLOCATOR[device.partition(":")[0].partition(" ")[0]]
    return f"the most that torch held at once during a call beyond what it held before, by {allocator}"


def _curve(method: str, rows: Sequence[Row], name: str, factor: float) -> Curve:
    spreads = [row.measured[name] for row in rows]
    ends = zip(*(spread.quartiles for spread in spreads), strict=True)
    middle, low, high = ([factor * value for value in values] for values in ([spread.median for spread in spreads], *ends))
    return Curve(method, _tokens(rows), middle, low, high)


def _tokens(rows: Sequence[Row]) -> list[int]:
    return [row.visual_tokens for row in rows]
