"""Many runs in one table: methods and budgets against benchmarks, with the relative average the papers quote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import Any

from fastervlm.eval.runs import (
    CELL,
    CIRCUMSTANCES,
    MODEL,
    SETTINGS,
    Run,
    benchmark_names,
    counts_unasked,
    differing,
    first_of,
    grouped,
    method_of,
    note,
    scored_runs,
)
from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.tables import markdown_table

ALL = "none"
TIME = "mean_time_to_first_token_s"


@dataclass(frozen=True)
class Row:
    """One method at one budget: its runs by benchmark, several of a method with seeds and of what was run again.

    `settings` names those that runs of one benchmark differ in, `circumstances` what else runs of one cell differ in.
    """

    method: str
    visual_tokens: int | str
    settings: str
    circumstances: str
    runs: dict[str, list[Run]]

    @property
    def told(self) -> str:
        """What tells the row from others of its method and budget."""
        return ", ".join(filter(None, (self.settings, self.circumstances)))

    def value(self, task: str) -> float:
        """The mean score on a benchmark."""
        return fmean(run["score"]["value"] for run in self.runs[task])

    def interval(self, task: str) -> tuple[float, float]:
        """The mean confidence interval of its runs."""
        low, high = zip(*(run["score"]["ci95"] for run in self.runs[task]), strict=True)
        return fmean(low), fmean(high)

    @property
    def time(self) -> float | None:
        """Mean time to the first token over its runs, in seconds."""
        times = [run[TIME] for runs in self.runs.values() for run in runs if run.get(TIME) is not None]
        return fmean(times) if times else None


@dataclass(frozen=True)
class Overview:
    """All scored runs of one model, by settings, unpruned first, then by budget and method."""

    model: str
    about: dict[str, Any]
    rows: list[Row]

    @property
    def tasks(self) -> list[str]:
        """The benchmarks, in order of their names."""
        return sorted({task for row in self.rows for task in row.runs})

    def baseline(self, row: Row) -> Row | None:
        """The unpruned runs with the settings of a row, those under its circumstances first."""
        whole = [each for each in self.rows if each.method == ALL and each.settings == row.settings]
        return next((each for each in whole if each.circumstances == row.circumstances), whole[0] if whole else None)

    def relative(self, row: Row) -> float | None:
        """The mean over benchmarks of score / unpruned score, in percent, as the papers average; None unless all are there."""
        whole = self.baseline(row)
        if whole is None or any(task not in row.runs or task not in whole.runs or not whole.value(task) for task in self.tasks):
            return None
        return 100 * fmean(row.value(task) / whole.value(task) for task in self.tasks)

    def relative_interval(self, row: Row) -> tuple[float, float]:
        """Where that average lies by the intervals of the row's own scores, which do not depend on each other."""
        whole, average = self.baseline(row), self.relative(row)
        if whole is None or average is None:
            raise ValueError(f"{row.method} at {row.visual_tokens} visual tokens has no relative average.")
        ends = zip(*(row.interval(task) for task in self.tasks), strict=True)
        low, high = (
            100 * hypot(*((end - row.value(task)) / whole.value(task) for end, task in zip(side, self.tasks, strict=True)))
            for side in ends
        )
        return average - low / len(self.tasks), average + high / len(self.tasks)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows; the settings only where rows differ in them."""
        rows, are_set = [], any(row.told for row in self.rows)
        for row in self.rows:
            cells = [_score(row, task) if task in row.runs else "" for task in self.tasks]
            average, time = self.relative(row), row.time
            head = [row.method, str(row.visual_tokens), *([row.told] if are_set else [])]
            rows.append([*head, *cells, _number(average, "%"), _number(time and 1000 * time)])
        head = ["method", "visual tokens", *(["settings"] if are_set else [])]
        return [*head, *map(self._titled, self.tasks), "relative average", "TTFT (ms)"], rows

    def _titled(self, task: str) -> str:
        """What stands above the scores of a benchmark: its name, and how many questions if not all were asked."""
        first = first_of(run for row in self.rows for run in row.runs.get(task, []))
        return task if first is None else f"{task} (first {first})"

    @property
    def doubts(self) -> list[str]:
        """The runs whose scores are not what they seem."""
        return [
            f"{task}, {row.method} at {row.visual_tokens}: scored when questions that a run with --limit never asked counted "
            "as wrong; run its eval again, which only scores it."
            for row in self.rows
            for task, runs in row.runs.items()
            if any(map(counts_unasked, runs))
        ]

    def summary(self) -> dict[str, Any]:
        """The table for a JSON file."""
        rows = []
        for row in self.rows:
            scores = {
                task: {"value": row.value(task), "ci95": list(row.interval(task)), "runs": len(runs)}
                | ({"first": first} if (first := first_of(runs)) else {})
                for task, runs in row.runs.items()
            }
            same = {"method": row.method, "visual_token_num": row.visual_tokens, "settings": row.told}
            average = {"relative_average": self.relative(row), "mean_time_to_first_token_s": row.time}
            rows.append({**same, "scores": scores, **average})
        return {"model": self.model, **self.about, "rows": rows}

    def panel(self) -> Panel | None:
        """Relative average over visual tokens, a curve for each method with its settings; None without numbers to draw."""
        curves: dict[str, list[tuple[int, float, float, float]]] = {}
        for row in self.rows:
            value = self.relative(row)
            if value is not None and isinstance(row.visual_tokens, int) and row.method != ALL:
                label = f"{row.method}, {row.told}" if row.told else row.method
                curves.setdefault(label, []).append((row.visual_tokens, value, *self.relative_interval(row)))
        if not curves:
            return None
        drawn = [Curve(label, *zip(*sorted(points, reverse=True), strict=True)) for label, points in curves.items()]
        title = f"{self.model}, {len(self.tasks)} benchmarks"
        return Panel(title, "visual tokens", "relative average (%)", drawn, (ALL, 100.0))


def overviews(folder: Path) -> list[Overview]:
    """The scored runs whose protocols lie anywhere in `folder`, a table for each model.

    Raises:
        UserError: there is no scored run.
    """
    found = []
    for called in grouped(scored_runs(folder), ["model"]):
        apart = differing(called, MODEL)
        found.extend(_overview(runs, apart) for runs in grouped(called, MODEL))
    return found


def _overview(runs: Sequence[Run], apart: Sequence[str]) -> Overview:
    """The table of one model; `apart` is what tells it from others of its name."""
    columns = benchmark_names(runs)
    differ = [key for key in SETTINGS if any(differing(column, [key]) for column in columns.values())]
    cells = [cell for column in columns.values() for cell in grouped(column, (*CELL, *differ))]
    circumstances = [key for key in CIRCUMSTANCES if any(differing(cell, [key]) for cell in cells)]
    rows: dict[tuple[Any, ...], Row] = {}
    for name, column in columns.items():
        for run in column:
            cell = method_of(run), run["visual_token_num"], note(run, differ), note(run, circumstances)
            rows.setdefault(cell, Row(*cell, {})).runs.setdefault(name, []).append(run)
    about = {key: runs[0].get(key) for key in (*MODEL[1:], "device", "versions")}
    model = ", ".join([runs[0]["model"], *([note(runs[0], apart)] if apart else [])])
    return Overview(model, about, sorted(rows.values(), key=_order))


def _order(row: Row) -> tuple[Any, ...]:
    count = row.visual_tokens if isinstance(row.visual_tokens, int) else -1
    return row.settings, row.method != ALL, -count, str(row.visual_tokens), row.method, row.circumstances


def write(found: Sequence[Overview], out: Path) -> None:
    """Write report.md, report.json and, if there is something to draw, report.png; an older plot does not stay."""
    write_text(out / "report.md", "\n".join(_markdown(found)))
    write_json(out / "report.json", [overview.summary() for overview in found])
    panels = [panel for overview in found if (panel := overview.panel())]
    if panels:
        draw_panels(panels, out / "report.png")
    else:
        (out / "report.png").unlink(missing_ok=True)


def _markdown(found: Sequence[Overview]) -> Iterator[str]:
    for overview in found:
        yield f"{overview.model}:\n\n{markdown_table(*overview.table())}"
        yield from (f"{doubt}\n" for doubt in overview.doubts)
    yield (
        "Scores with half the width of their 95 % bootstrap interval; a method with a seed is the mean of its runs. Runs of a "
        "benchmark with different settings stand in rows of their own; what is the same, answers and all, counts once. "
        "Relative average: the mean over the benchmarks of score / unpruned score, for rows that have all of them. TTFT: mean "
        "time to the first token of a batch.\n"
    )


def _score(row: Row, task: str) -> str:
    low, high = row.interval(task)
    return f"{row.value(task):.1f} ± {(high - low) / 2:.1f}"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.1f}{unit}"
