"""Accuracy and speed over methods, layers and token budgets; the runs of all cells share the tower's work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answerer import pruned
from fastervlm.eval.answers import answers_in, refuse_ownerless
from fastervlm.eval.kinds import ByKind, kinds_in, scores_by_kind
from fastervlm.eval.runner import checked_questions, tell_above
from fastervlm.eval.score import Score, mean_of
from fastervlm.eval.settings import Settings, chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.table import ALL, BASES, BLIND, Cell, Comparison, column_name
from fastervlm.eval.together import Found, evaluate_together
from fastervlm.methods.lookup import draws, get_method
from fastervlm.selection.budget import AtMost, Budget, TokenBudget
from fastervlm.selection.method import Method, traits

_BESIDE = ("random", "grid")
_FAILED = (
    "A run answered no question, or other ones than the next, because pictures failed; the *.protocol.json files beside the "
    "answers name them, mend them and run again."
)


@dataclass(frozen=True, eq=False)
class _Column:
    """One method, at one layer if it is compared over layers; `variants` are the settings of its runs by folder name."""

    method: str
    variants: dict[str, dict[str, Any]]
    layer: int | None = None

    @property
    def in_llm(self) -> bool:
        """Whether it prunes inside the language model."""
        return traits(get_method(next(iter(self.variants.values()))["method"])).in_llm


def compare(
    subject: Subject,
    settings: Settings,
    *,
    budgets: Sequence[int | float | AtMost],
    methods: Sequence[str] | None,
    out_dir: Path,
    layers: Sequence[int] = (),
    seeds: int = 3,
    blind: bool = False,
) -> Comparison:
    """Run every cell that is not finished yet and write the table and the plot into `out_dir`.

    `settings` holds what the cells share; its answers file, budget and method are replaced. Methods inside the language model
    are run once for each of `layers`, if any are given. `methods` are METHOD or METHOD:SCORE; without them the default of the
    kind of model stands beside random and grid.
    """
    for keep in budgets:
        Budget.of(keep)  # refuses what is none
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be at least 1.")
    columns = [] if methods is None else list(_columns(methods, layers, seeds))  # says what is wrong before the model is loaded
    if settings.annotation_file is None:
        raise UserError("A comparison needs scores; give --annotation-file.")
    checked_questions(replace(settings, answers_file=out_dir / "all.jsonl", keep=None))
    for folder in (folder for column in columns for folder in column.variants):
        for count in budgets:  # fractions are of what only the model, loaded next, can tell
            refuse_ownerless(answers_in(out_dir, folder, count))
    total = subject.tokens_of(settings.medium.kind)
    if methods is None:
        columns = list(_columns([subject.family.default_method(subject.model), *_BESIDE], layers, seeds))
    if settings.medium.parts(subject) and any(isinstance(keep, AtMost) for keep in budgets):
        raise UserError(
            "This table counts the tokens of each crop or frame, and at-most is of a whole picture or clip; use counts or "
            "fractions here, or at-most by fastervlm eval."
        )
    for budget in budgets:
        tell_above(budget, total)
    _refuse_what_cannot_be_pruned(subject, settings, columns)

    runs = _Runs(subject, replace(settings, keep=None), out_dir)
    whole = runs.of(_Column(ALL, {"all": {}}), total or "all")
    floor = runs.of(_Column(BLIND, {"blind": {"blind": True}}), total or "all") if blind else []
    counts = _counts(budgets, total, 0) if total else _counts(budgets, None, runs.tokens_of(whole))
    pruned_runs = {
        (column, name): runs.of(column, name, keep=_keep(column, name, total, settings.medium.parts(subject)))
        for column in columns
        for name in counts
    }
    runs.answer([*whole, *(run for each in pruned_runs.values() for run in each), *floor])
    unpruned = total or runs.tokens_of(whole)
    cells = [runs.cell(column, counts[name], each) for (column, name), each in pruned_runs.items()]
    names = [column_name(column.method, column.layer) for column in columns]
    ends = [runs.cell(_Column(name, {}), unpruned, each) for name, each in ((ALL, whole), (BLIND, floor)) if each]
    by_kind = runs.by_kind([*zip(cells, pruned_runs.values(), strict=True), (ends[0], whole)], names)
    comparison = Comparison(subject.name, names, ends[0], cells, ends[1] if blind else None, by_kind)
    comparison.write(out_dir)
    return comparison


class _Runs:
    """The runs of all cells: what they are told, and what came of them."""

    def __init__(self, subject: Subject, shared: Settings, out_dir: Path) -> None:
        self.subject, self.shared, self.out_dir = subject, shared, out_dir
        self.found: dict[Path, Found] = {}

    def of(self, column: _Column, name: object, **changes: Any) -> list[Settings]:
        """The runs of a cell."""
        return [
            replace(self.shared, answers_file=answers_in(self.out_dir, folder, name), **(told | changes))
            for folder, told in column.variants.items()
        ]

    def answer(self, runs: Sequence[Settings]) -> None:
        """Answer those that are not answered yet, all together."""
        left = [run for run in runs if run.answers_file not in self.found]
        self.found |= zip((run.answers_file for run in left), evaluate_together(self.subject, left), strict=True)

    def tokens_of(self, runs: Sequence[Settings]) -> int:
        """Visual tokens of the mean question, unpruned."""
        self.answer(runs)
        means = [self.found[run.answers_file][0]["mean_visual_tokens_unpruned"] for run in runs]
        if None in means:
            raise UserError(_FAILED)
        return round(fmean(means))

    def cell(self, column: _Column, count: int, runs: Sequence[Settings]) -> Cell:
        """The cell of runs that are answered."""
        done = [self.found[run.answers_file] for run in runs]
        score = _mean([score for _, score in done])
        return Cell(column.method, count, [protocol for protocol, _ in done], score, column.layer, runs)

    def by_kind(self, cells: Sequence[tuple[Cell, Sequence[Settings]]], names: list[str]) -> ByKind | None:
        """The scores by kind of question, the unpruned cell last; None where questions have no kinds."""
        questions = self.shared.task.questions(self.shared.question_file, self.shared.media_folder)[: self.shared.limit]
        kinds = kinds_in(questions)
        if not kinds:
            return None
        scores = {(cell.label, cell.visual_tokens): scores_by_kind(runs, cell.protocols, questions) for cell, runs in cells}
        base = next((name for name in (*BASES, *names) if name in names), None) if len(names) > 1 else None
        whole = cells[-1][0]
        counts = {kind: len(own) for kind, own in kinds.items()}
        return ByKind(counts, scores, (whole.label, whole.visual_tokens), base, names)


def _counts(budgets: Sequence[int | float | AtMost], total: int | None, mean: int) -> dict[int | float | AtMost, int]:
    """What each budget keeps of a picture, crop or frame, by the name of its run, from the most down.

    Where pictures have as many tokens as their shape asks for (no `total`), a budget is itself the name, and a fraction is
    counted of the mean.
    """
    if total is not None:
        return {count: count for count in sorted({_resolved(keep, total) for keep in budgets} - {total}, reverse=True)}
    less = [keep for keep in budgets if not (isinstance(keep, float) and keep == 1)]
    found = {keep: _named(keep, mean) for keep in less}
    if len(set(found.values())) < len(found):
        raise UserError(f"Two of the budgets are as many tokens of the mean question, of {mean}; leave one out.")
    for keep, count in found.items():
        if count == mean:
            raise UserError(f"{keep} is what the mean question has without pruning, {mean} tokens; give another number for it.")
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _resolved(keep: int | float | AtMost, total: int) -> int:
    return keep.resolve(total) if isinstance(keep, AtMost) else TokenBudget(keep).resolve(total)


def _named(keep: int | float | AtMost, mean: int) -> int:
    """The number by which the table calls a budget: that which it names, and of a fraction what the mean question keeps."""
    if isinstance(keep, AtMost) and keep.budget == TokenBudget(1.0):
        return keep.tokens
    return keep if isinstance(keep, int) else _resolved(keep, mean)


def _columns(methods: Iterable[str], layers: Sequence[int], seeds: int) -> Iterator[_Column]:
    known = {name: chosen(name) for name in methods}
    layered = {name for name, told in known.items() if layers and _has_layer(told["method"])}
    if layers and not layered:
        raise UserError("--layers is for methods that prune inside the language model at a layer; add fastv to --methods.")
    for name, told in known.items():
        folder = name.replace(":", "-")
        if name in layered:
            for layer in dict.fromkeys(layers):
                yield _Column(name, {f"{name}-layer{layer}": {"method": get_method(name, layer=layer)}}, layer)
        elif draws(told["method"]):
            yield _Column(name, {f"{folder}-seed{seed}": chosen(name, seed) for seed in range(seeds)})
        else:
            yield _Column(name, {folder: told})


def _has_layer(method: Method) -> bool:
    return traits(method).in_llm and "layer" in {field.name for field in fields(method)}  # type: ignore[arg-type]


def _keep(column: _Column, keep: int | float | AtMost, total: int | None, parts: str | None) -> int | float | AtMost:
    """The budget of a cell: inside the language model, where crops or frames are not told apart, the same share of all."""
    if not column.in_llm or parts is None or not isinstance(keep, int):
        return keep
    if total is None:
        raise UserError(
            f"{column.method} does not tell {parts} apart, whose tokens depend on their shape; give budgets as fractions."
        )
    return keep / total


def _refuse_what_cannot_be_pruned(subject: Subject, settings: Settings, columns: Iterable[_Column]) -> None:
    """Say so before the first cell is run."""
    for column in columns:
        for told in column.variants.values():
            with pruned(subject, replace(settings, keep=1, **told)):
                pass


def _mean(scores: Sequence[Score | None]) -> Score:
    """The mean over the runs of a cell."""
    found = [score for score in scores if score is not None]
    if len(found) < len(scores) or len({(score.samples, score.keys) for score in found}) > 1:
        raise UserError(_FAILED)
    return mean_of(found)
