"""Many runs in one table: methods and budgets against benchmarks, with the relative average the papers quote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import read_protocol
from fastervlm.report import Curve, Panel, draw_panels, markdown_table, write_json, write_text

ALL = "none"
TIME = "mean_time_to_first_token_s"

# What makes two runs rows of one table.
_MODEL = ("model", "weights_sha256", "anyres", "dtype", "quantize")


@dataclass(frozen=True)
class Row:
    """One method at one budget: its runs by benchmark, several of a method with seeds."""

    method: str
    visual_tokens: int | str
    runs: dict[str, list[dict[str, Any]]]

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
    """All scored runs of one model, unpruned first, then by budget and method."""

    model: str
    about: dict[str, Any]
    rows: list[Row]

    @property
    def tasks(self) -> list[str]:
        """The benchmarks, in order of their names."""
        return sorted({task for row in self.rows for task in row.runs})

    @property
    def baseline(self) -> Row | None:
        """The unpruned runs."""
        return next((row for row in self.rows if row.method == ALL), None)

    def relative(self, row: Row) -> float | None:
        """The mean over benchmarks of score / unpruned score, in percent, as the papers average; None unless all are there."""
        whole = self.baseline
        if whole is None or any(task not in row.runs or task not in whole.runs or not whole.value(task) for task in self.tasks):
            return None
        return 100 * fmean(row.value(task) / whole.value(task) for task in self.tasks)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows."""
        rows = []
        for row in self.rows:
            cells = [_score(row, task) if task in row.runs else "" for task in self.tasks]
            average, time = self.relative(row), row.time
            rows.append([row.method, str(row.visual_tokens), *cells, _number(average, "%"), _number(time and 1000 * time)])
        return ["method", "visual tokens", *self.tasks, "relative average", "TTFT (ms)"], rows

    def summary(self) -> dict[str, Any]:
        """The table for a JSON file."""
        rows = []
        for row in self.rows:
            scores = {
                task: {"value": row.value(task), "ci95": list(row.interval(task)), "runs": len(runs)}
                for task, runs in row.runs.items()
            }
            same = {"method": row.method, "visual_token_num": row.visual_tokens, "scores": scores}
            rows.append({**same, "relative_average": self.relative(row), "mean_time_to_first_token_s": row.time})
        return {"model": self.model, **self.about, "rows": rows}

    def panel(self) -> Panel | None:
        """Relative average over visual tokens, a curve for each method; None without numbers to draw."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            value = self.relative(row)
            if value is not None and isinstance(row.visual_tokens, int) and row.method != ALL:
                curves.setdefault(row.method, []).append((row.visual_tokens, value))
        if not curves:
            return None
        drawn = [Curve(method, *zip(*sorted(points, reverse=True), strict=True)) for method, points in curves.items()]
        return Panel(
            f"{self.model}, {len(self.tasks)} benchmarks", "visual tokens", "relative average (%)", drawn, (ALL, 100.0)
        )


def overviews(folder: Path) -> list[Overview]:
    """The scored runs whose protocols lie anywhere in `folder`, a table for each model.

    Raises:
        UserError: there is no scored run.
    """
    protocols = sorted(folder.rglob("*.protocol.json"))
    runs = [run for path in protocols if (run := read_protocol(path)).get("score") and not run.get("blind")]
    if not runs:
        raise UserError(f"{folder} holds no scored run; run fastervlm eval or compare with annotations first.")
    models: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        models.setdefault(repr([run.get(key) for key in _MODEL]), []).append(run)
    return [_overview(found) for found in models.values()]


def _overview(runs: Sequence[dict[str, Any]]) -> Overview:
    rows: dict[tuple[Any, ...], Row] = {}
    for run in runs:
        method = _method(run)
        row = rows.setdefault((method, run["visual_token_num"]), Row(method, run["visual_token_num"], {}))
        row.runs.setdefault(run["task"], []).append(run)
    about = {key: runs[0].get(key) for key in ("weights_sha256", "anyres", "dtype", "device", "versions")}
    return Overview(runs[0]["model"], about, sorted(rows.values(), key=_order))


def _method(run: dict[str, Any]) -> str:
    """What a run's method is called; its seed is not part of it."""
    found = run.get("method_settings")
    if found is None:
        return run["method"]
    changed = ", ".join(f"{key}={value}" for key, value in found["settings"].items() if key != "seed")
    return f"{found['name']}({changed})" if changed else found["name"]


def _order(row: Row) -> tuple[Any, ...]:
    count = row.visual_tokens if isinstance(row.visual_tokens, int) else -1
    return row.method != ALL, -count, str(row.visual_tokens), row.method


def write(found: Sequence[Overview], out: Path) -> None:
    """Write report.md, report.json and, if there is something to draw, report.png."""
    write_text(out / "report.md", "\n".join(_markdown(found)))
    write_json(out / "report.json", [overview.summary() for overview in found])
    panels = [panel for overview in found if (panel := overview.panel())]
    if panels:
        draw_panels(panels, out / "report.png")


def _markdown(found: Sequence[Overview]) -> Iterator[str]:
    for overview in found:
        yield f"{overview.model}:\n\n{markdown_table(*overview.table())}"
    yield (
        "Scores with half the width of their 95 % bootstrap interval; a method with a seed is the mean of its runs. "
        "Relative average: the mean over the benchmarks of score / unpruned score, for rows that have all of them. TTFT: mean "
        "time to the first token of a batch.\n"
    )


def _score(row: Row, task: str) -> str:
    low, high = row.interval(task)
    return f"{row.value(task):.1f} ± {(high - low) / 2:.1f}"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.1f}{unit}"
