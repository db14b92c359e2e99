"""Accuracy and speed over methods and token budgets: every cell is one run of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import fastervlm
from encoders.errors import UserError
from fastervlm.eval.runner import checked_questions, evaluate
from fastervlm.eval.settings import Settings, seeded
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Score
from fastervlm.methods import Method, get_method
from fastervlm.report import Curve, Panel, draw_panels, markdown_table, write_json, write_text

ALL = "all tokens"
BLIND = "blind"


@dataclass(frozen=True)
class Cell:
    """One method at one budget; a method with a seed is the mean of several runs."""

    method: str
    visual_tokens: int
    protocols: list[dict[str, Any]]
    score: Score

    def mean(self, key: str) -> float:
        """Mean of a number in the runs' protocols."""
        return fmean(protocol[key] for protocol in self.protocols)

    def summary(self) -> dict[str, Any]:
        """The cell for a JSON file."""
        return {
            "method": self.method,
            "visual_token_num": self.visual_tokens,
            "score": self.score.summary(),
            "runs": [protocol["score"]["value"] for protocol in self.protocols],
            "mean_time_to_first_token_s": self.mean("mean_time_to_first_token_s"),
            "samples_per_second": self.mean("samples_per_second"),
            "failed": max(protocol["failed"] for protocol in self.protocols),
        }


@dataclass(frozen=True)
class Comparison:
    """All cells of one model: the unpruned run, each method at each budget, and the blind floor if it was asked for."""

    model: str
    batch_size: int
    methods: list[str]
    whole: Cell
    cells: list[Cell]
    blind: Cell | None = None

    @property
    def failed(self) -> int:
        """The most questions that failed in any cell."""
        return max(cell.summary()["failed"] for cell in self._all())

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The questions that failed in any run, each once."""
        runs = [protocol for cell in self._all() for protocol in cell.protocols]
        return list({failure["line"]: failure for protocol in runs for failure in protocol["failures"]}.values())

    def _all(self) -> list[Cell]:
        return [self.whole, *self.cells, *([self.blind] if self.blind else [])]

    def cell(self, method: str, visual_tokens: int) -> Cell:
        """One cell; at all tokens the unpruned run stands for every method."""
        found = [cell for cell in self.cells if (cell.method, cell.visual_tokens) == (method, visual_tokens)]
        return found[0] if found else self.whole

    @property
    def budgets(self) -> list[int]:
        """Token counts from all tokens down."""
        return sorted({self.whole.visual_tokens, *(cell.visual_tokens for cell in self.cells)}, reverse=True)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: accuracy with its interval for each method, beside the speed of the first method."""
        first = self.methods[0]
        rows = []
        for count in self.budgets:
            rows.append(
                [
                    str(count),
                    *(_accuracy(self.cell(method, count)) for method in self.methods),
                    *_speed(self.cell(first, count)),
                ]
            )
        if self.blind:
            rows.append([BLIND, *(_accuracy(self.blind) for _ in self.methods), *_speed(self.blind)])
        return ["tokens", *self.methods, "TTFT (ms)", "samples/s"], rows

    def write(self, folder: Path) -> None:
        """Write compare.md, compare.json and compare.png."""
        headers, rows = self.table()
        note = (
            f"{self.whole.score.metric} of {self.model} in percent, with half the width of its 95 % bootstrap interval, on "
            f"{self.whole.score.samples} questions; a method with a seed is the mean of its runs, and blind sees flat grey. "
            f"TTFT: time to the first token of a batch of {self.batch_size} with its pictures ready; it and samples/s are "
            f"those of {self.methods[0]}, on {self.whole.protocols[0]['device']} in {self.whole.protocols[0]['dtype']}.\n"
        )
        write_text(folder / "compare.md", f"{markdown_table(headers, rows)}\n{note}")
        same = ("command", "model", "weights_sha256", "prompt_template", "dtype", "device", "batch_size", "versions")
        about = {key: self.whole.protocols[0][key] for key in (*same, "question_file_sha256")}
        write_json(folder / "compare.json", {**about, "cells": [cell.summary() for cell in self._all()]})
        draw_panels(self._panels(), folder / "compare.png")

    def _panels(self) -> list[Panel]:
        counts = self.budgets
        accuracy, time = [], []
        for method in self.methods:
            cells = [self.cell(method, count) for count in counts]
            scores = [cell.score for cell in cells]
            low, high = [score.low for score in scores], [score.high for score in scores]
            accuracy.append(Curve(method, counts, [score.value for score in scores], low, high))
            time.append(Curve(method, counts, [1000 * cell.mean("mean_time_to_first_token_s") for cell in cells]))
        floor = (BLIND, self.blind.score.value) if self.blind else None
        name = self.whole.score.metric
        return [
            Panel(f"{name} of {self.model}", "visual tokens", f"{name} (%)", accuracy, floor),
            Panel("Time to first token", "visual tokens", f"ms for a batch of {self.batch_size}", time, from_zero=True),
        ]


def _accuracy(cell: Cell) -> str:
    return f"{cell.score.value:.1f} ± {(cell.score.high - cell.score.low) / 2:.1f}"


def _speed(cell: Cell) -> list[str]:
    return [f"{1000 * cell.mean('mean_time_to_first_token_s'):.1f}", f"{cell.mean('samples_per_second'):.1f}"]


def compare(
    subject: Subject,
    settings: Settings,
    *,
    budgets: Sequence[int | float],
    methods: Sequence[str],
    out_dir: Path,
    seeds: int = 3,
    blind: bool = False,
) -> Comparison:
    """Run every cell that is not finished yet and write the table and the plot into `out_dir`.

    `settings` holds what the cells share; its answers file, budget and method are replaced.
    """
    kept = [fastervlm.TokenBudget(keep=keep) for keep in budgets]
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be at least 1.")
    runs = {name: _variants(name, seeds) for name in methods}
    if settings.annotation_file is None:
        raise UserError("A comparison needs scores; give --annotation-file.")
    checked_questions(replace(settings, answers_file=out_dir / "all.jsonl", keep=None))
    total = subject.num_visual_tokens
    counts = sorted({budget.resolve(total) for budget in kept} - {total}, reverse=True)

    def cell(name: str, count: int, variants: dict[str, Settings]) -> Cell:
        done = [
            evaluate(subject, replace(s, answers_file=out_dir / folder / f"n_{count}.jsonl")) for folder, s in variants.items()
        ]
        return Cell(name, count, [protocol for protocol, _ in done], _mean([score for _, score in done]))

    whole = cell(ALL, total, {"all": replace(settings, keep=None)})
    cells = [
        cell(name, count, {folder: replace(settings, keep=count, method=method) for folder, method in variants.items()})
        for name, variants in runs.items()
        for count in counts
    ]
    floor = cell(BLIND, total, {"blind": replace(settings, keep=None, blind=True)}) if blind else None
    comparison = Comparison(subject.name, settings.batch_size, list(runs), whole, cells, floor)
    comparison.write(out_dir)
    return comparison


def _variants(name: str, seeds: int) -> dict[str, Method]:
    """The runs of a method by folder name: one, or one a seed if the method draws at random."""
    if not hasattr(get_method(name), "seed"):
        return {name: get_method(name)}
    return {f"{name}-seed{seed}": seeded(name, seed) for seed in range(seeds)}


def _mean(scores: Sequence[Score | None]) -> Score:
    """The score whose value for each question is the mean over the runs."""
    values = [score.values for score in scores if score is not None]
    if len(values) < len(scores) or len({len(run) for run in values}) > 1:
        raise UserError(
            "A run answered no question, or other ones than the next, because pictures failed; the *.protocol.json files "
            "beside the answers name them, mend them and run again."
        )
    metric = next(score.metric for score in scores if score)
    return Score.of(metric, [fmean(run) for run in zip(*values, strict=True)])
