"""The table and the plot of a comparison; a cell is one method at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fastervlm.eval.kinds import ByKind
from fastervlm.eval.score import Difference, Score, difference
from fastervlm.eval.settings import Settings
from fastervlm.methods.lookup import get_method, is_name
from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.plots import Curve, Heatmap, Panel, draw_panels
from fastervlm.reporting.provenance import program
from fastervlm.reporting.tables import markdown_table
from fastervlm.selection.method import traits

ALL = "all tokens"
BLIND = "blind"
TIME = "mean_time_to_first_token_s"
_UNASKED = ("cdpruner", "mmtok")  # which read a question only where they are told how
BASES = ("cls", "random")  # what every other method is compared with, question by question

Table = tuple[list[str], list[list[str]]]


def column_name(method: str, layer: int | None) -> str:
    """What a method is called in the table, at a layer if it is compared over layers."""
    return method if layer is None else f"{method}, layer {layer}"


@dataclass(frozen=True)
class Cell:
    """One method at one budget; a method with a seed is the mean of several runs.

    `layer` is where a method inside the language model prunes, if the comparison is over layers; `runs` are what was run.
    """

    method: str
    visual_tokens: int
    protocols: list[dict[str, Any]]
    score: Score
    layer: int | None = None
    runs: Sequence[Settings] = ()

    @property
    def label(self) -> str:
        """The name of its column."""
        return column_name(self.method, self.layer)

    def mean(self, key: str) -> float:
        """Mean of a number in the runs' protocols."""
        return fmean(protocol[key] for protocol in self.protocols)

    def summary(self) -> dict[str, Any]:
        """The cell for a JSON file."""
        keys = (TIME, "samples_per_second", "mean_visual_tokens", "mean_visual_tokens_unpruned")
        return {
            "method": self.method,
            **({} if self.layer is None else {"layer": self.layer}),
            "visual_token_num": self.visual_tokens,
            "score": self.score.summary(),
            "runs": [protocol["score"]["value"] for protocol in self.protocols],
            **{key: self.mean(key) for key in keys},
            "failed": max(protocol["failed"] for protocol in self.protocols),
        }


@dataclass(frozen=True)
class Comparison:
    """All cells of one model: the unpruned run, each method at each budget, and the blind floor if it was asked for.

    `methods` are the columns, a method over several layers once for each; `by_kind` are the scores by kind of question, where
    the questions have kinds.
    """

    model: str
    methods: list[str]
    whole: Cell
    cells: list[Cell]
    blind: Cell | None = None
    by_kind: ByKind | None = None

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

    def _values(self, key: str) -> list[Any]:
        """What the runs have under a key, each value once."""
        return list(dict.fromkeys(protocol.get(key) for cell in self._all() for protocol in cell.protocols))

    @property
    def doubts(self) -> list[str]:
        """Why times are not to be compared: runs that were finished before keep theirs."""
        found = {"--batch-size": self._values("batch_size"), "--device": self._values("device")}
        return [
            f"Runs were timed with {option} {' and '.join(map(str, values))}, so do not compare their times; for new ones give "
            "another --out-dir."
            for option, values in found.items()
            if len(values) > 1
        ]

    @property
    def _batch(self) -> str:
        return " or ".join(map(str, self._values("batch_size")))

    def cell(self, method: str, visual_tokens: int) -> Cell:
        """One cell by its column; at all tokens the unpruned run stands for every method."""
        found = [cell for cell in self.cells if (cell.label, cell.visual_tokens) == (method, visual_tokens)]
        return found[0] if found else self.whole

    @property
    def budgets(self) -> list[int]:
        """Token counts from all tokens down; where pictures are of many shapes, all are those of the mean picture."""
        whole = self.whole.visual_tokens
        return [whole, *sorted({cell.visual_tokens for cell in self.cells} - {whole}, reverse=True)]

    @property
    def has_crops(self) -> bool:
        """Whether a budget is that of one crop of a picture."""
        return self.whole.protocols[0].get("anyres") is not None

    @property
    def of_any_shape(self) -> bool:
        """Whether a picture or frame has as many tokens as its shape asks for."""
        return self.whole.protocols[0]["visual_token_num"] == "all"

    def table(self) -> Table:
        """Header and rows: for each budget and method the accuracy with its interval, and the speed beside it.

        Where pictures are cut into crops or are of any shape, or a method used other numbers than it was asked for, a column
        says how many visual tokens a question had.
        """
        pruned = [self.cell(method, count) for count in self.budgets[1:] for method in self.methods]
        cells = [self.whole, *pruned, *([self.blind] if self.blind else [])]
        rows = [
            [str(cell.visual_tokens), cell.label, *self._counted(cell), _accuracy(cell.score), *_speed(cell)] for cell in cells
        ]
        counted = ["visual tokens"] if self._counts_them else []
        return [self._tokens, "method", *counted, self.whole.score.metric, "TTFT (ms)", "samples/s"], rows

    @property
    def _tokens(self) -> str:
        part = (
            " a crop"
            if self.has_crops and not self.of_any_shape
            else " a frame"
            if "num_frames" in self.whole.protocols[0]
            else ""
        )
        return f"tokens{part}"

    @property
    def _counts_them(self) -> bool:
        return self.has_crops or self.of_any_shape or self._has_other_counts

    @property
    def _has_other_counts(self) -> bool:
        names = [cell.method.partition(":")[0] for cell in self.cells]
        return any(traits(get_method(name)).other_counts for name in names if is_name(name))

    def _counted(self, cell: Cell) -> list[str]:
        return [f"{cell.mean('mean_visual_tokens'):.5g}"] if self._counts_them else []

    def layer_tables(self) -> dict[str, Table]:
        """For each method that was run over layers: accuracy, a row for each layer and a column for each budget."""
        tables = {}
        for method, layers in self._layers().items():
            rows = [
                [str(layer), *(_accuracy(self.cell(label, count).score) for count in self.budgets)]
                for layer, label in layers.items()
            ]
            tables[method] = ["layer", *(f"{count} tokens" for count in self.budgets)], rows
        return tables

    def _layers(self) -> dict[str, dict[int, str]]:
        """The methods that were run over layers: column by layer."""
        found: dict[str, dict[int, str]] = {}
        for cell in self.cells:
            if cell.layer is not None:
                found.setdefault(cell.method, {})[cell.layer] = cell.label
        return found

    def part_tables(self) -> dict[str, Table]:
        """For each further number of the benchmark's score: a row for each budget, a column for each method."""
        tables = {}
        for i, part in enumerate(self.whole.score.parts):
            rows = [
                [str(count), *(_accuracy(self.cell(method, count).score.parts[i]) for method in self.methods)]
                for count in self.budgets
            ]
            tables[part.metric] = [self._tokens, *self.methods], rows
        return tables

    def differences(self, cell: Cell) -> dict[str, Difference]:
        """A pruned cell minus each other base method at the same budget, by the paired bootstrap."""
        bases = [base for base in BASES if base in self.methods and cell.label not in (base, ALL, BLIND)]
        return {base: difference(cell.score, self.cell(base, cell.visual_tokens).score) for base in bases}

    def difference_tables(self) -> dict[str, Table]:
        """For each base method: a row for each budget, a column for each other method."""
        found = {(cell.label, cell.visual_tokens): self.differences(cell) for cell in self.cells}
        tables = {}
        for base in BASES:
            others = [method for method in self.methods if method != base]
            if base in self.methods and others:
                rows = [[str(count), *(_change(found[method, count][base]) for method in others)] for count in self.budgets[1:]]
                tables[f"Points above {base}, with the 95 % interval and p of the paired bootstrap"] = (
                    [self._tokens, *others],
                    rows,
                )
        return tables

    def kind_tables(self) -> dict[str, Table]:
        """For each budget: a row for each kind of question, a column for each method."""
        return self.by_kind.tables() if self.by_kind else {}

    def write(self, folder: Path) -> None:
        """Write compare.md, compare.json and compare.png."""
        layered = {f"{method}, by layer": table for method, table in self.layer_tables().items()}
        more = layered | self.part_tables() | self.difference_tables() | self.kind_tables()
        parts = [
            f"{markdown_table(*self.table())}\n{self._note()}",
            *(f"{name}:\n\n{markdown_table(*more[name])}" for name in more),
            *([self.by_kind.note] if self.by_kind else []),
        ]
        write_text(folder / "compare.md", "\n".join(parts))
        same = ("task", "limit", "model", "weights_sha256", "prompt_template", "dtype", "device", "batch_size", "versions")
        shown = ("anyres", "num_frames", "keep_cls", "question_file_sha256")
        first = self.whole.protocols[0]
        about = {"command": program()["command"], **{key: first[key] for key in (*same, *shown) if key in first}}
        kinds = {"kinds": self.by_kind.summary()} if self.by_kind else {}
        write_json(folder / "compare.json", {**about, "cells": [self._summary(cell) for cell in self._all()], **kinds})
        draw_panels(self._panels(), folder / "compare.png")

    def _summary(self, cell: Cell) -> dict[str, Any]:
        against = {base: found.summary() for base, found in self.differences(cell).items()} if cell in self.cells else {}
        return {**cell.summary(), **({"against": against} if against else {})}

    def _note(self) -> str:
        crops = (
            "Each crop of a picture keeps so many tokens, inside the language model the same share of all crops together; "
            "visual tokens: their mean over questions. "
        )
        shapes = (
            "A picture has as many tokens as its shape asks for: tokens: of the mean picture; visual tokens: their mean over "
            "questions. "
        )
        others = "resize and pool use at most so many tokens; visual tokens: their mean over questions. "
        others = others if self._has_other_counts and not (self.has_crops or self.of_any_shape) else ""
        unasked = [name for name in self.methods if name.partition("+")[0] in _UNASKED]
        verb = "reads" if len(unasked) == 1 else "read"
        reads = f"{' and '.join(unasked)} by name alone {verb} no question. " if unasked else ""
        device, dtype = " or ".join(self._values("device")), self.whole.protocols[0]["dtype"]
        doubts = "".join(f"{doubt}\n" for doubt in self.doubts)
        return (
            f"{self.whole.score.metric} of {self.model} in percent, with half the width of its 95 % bootstrap interval, on "
            f"{self._asked}; a method with a seed is the mean of its runs, and blind sees flat grey. "
            f"{crops if self.has_crops else shapes if self.of_any_shape else others}{reads}"
            f"TTFT: time to the first token of a batch of {self._batch} with its pictures "
            f"ready; it and samples/s on {device} in {dtype}.\n{doubts}"
        )

    @property
    def _asked(self) -> str:
        """How many questions were asked, in words."""
        score = self.whole.score
        return f"{score.samples} questions" if score.first is None else f"the first {score.first} questions"

    def _panels(self) -> list[Panel | Heatmap]:
        counts = self.budgets
        accuracy, time = [], []
        for method in self.methods:
            cells = [self.cell(method, count) for count in counts]
            scores = [cell.score for cell in cells]
            low, high = [score.low for score in scores], [score.high for score in scores]
            accuracy.append(Curve(method, counts, [score.value for score in scores], low, high))
            time.append(Curve(method, counts, [1000 * cell.mean(TIME) for cell in cells]))
        floor = (BLIND, self.blind.score.value) if self.blind else None
        name, tokens = self.whole.score.metric, f"visual {self._tokens}"
        maps = [
            Heatmap(
                f"{name} (%) of {method}",
                tokens,
                "layer",
                [str(count) for count in counts],
                [str(layer) for layer in layers],
                [[self.cell(label, count).score.value for count in counts] for label in layers.values()],
            )
            for method, layers in self._layers().items()
        ]
        return [
            Panel(f"{name} of {self.model}", tokens, f"{name} (%)", accuracy, floor),
            Panel("Time to first token", tokens, f"ms for a batch of {self._batch}", time, from_zero=True),
            *maps,
        ]


def _accuracy(score: Score) -> str:
    return f"{score.value:.1f} ± {(score.high - score.low) / 2:.1f}"


def _speed(cell: Cell) -> list[str]:
    return [f"{1000 * cell.mean(TIME):.1f}", f"{cell.mean('samples_per_second'):.1f}"]


def _change(found: Difference) -> str:
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f}), p {found.p_value:.3f}"
