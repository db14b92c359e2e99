"""Accuracy and speed over methods, layers and token budgets: every cell is one run of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import fastervlm
from encoders.errors import UserError
from fastervlm.eval.answerer import pruned
from fastervlm.eval.answers import refuse_ownerless
from fastervlm.eval.runner import checked_questions, evaluate, tell_above
from fastervlm.eval.score import Score, mean_of
from fastervlm.eval.settings import Settings, seeded
from fastervlm.eval.subject import Subject
from fastervlm.eval.table import ALL, BLIND, Cell, Comparison, column_name
from fastervlm.methods.lookup import get_method
from fastervlm.selection.method import Method, traits


@dataclass(frozen=True)
class _Column:
    """One method, at one layer if it is compared over layers; `variants` are its runs by folder name."""

    method: str
    variants: dict[str, Method]
    layer: int | None = None


def compare(
    subject: Subject,
    settings: Settings,
    *,
    budgets: Sequence[int | float],
    methods: Sequence[str],
    out_dir: Path,
    layers: Sequence[int] = (),
    seeds: int = 3,
    blind: bool = False,
) -> Comparison:
    """Run every cell that is not finished yet and write the table and the plot into `out_dir`.

    `settings` holds what the cells share; its answers file, budget and method are replaced. Methods inside the language model
    are run once for each of `layers`, if any are given.
    """
    kept = [fastervlm.TokenBudget(keep=keep) for keep in budgets]
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be at least 1.")
    columns = list(_columns(methods, layers, seeds))
    if settings.annotation_file is None:
        raise UserError("A comparison needs scores; give --annotation-file.")
    checked_questions(replace(settings, answers_file=out_dir / "all.jsonl", keep=None))
    for folder in (folder for column in columns for folder in column.variants):
        for count in budgets:  # fractions are of what only the model, loaded next, can tell
            refuse_ownerless(out_dir / folder / f"n_{count}.jsonl")
    total = subject.num_visual_tokens
    for budget in kept:
        tell_above(budget.keep, total)
    counts = sorted({budget.resolve(total) for budget in kept} - {total}, reverse=True)
    _refuse_what_cannot_be_pruned(subject, settings, columns)

    def cell(column: _Column, count: int, **changes: object) -> Cell:
        done = []
        for folder, method in column.variants.items():
            run = replace(settings, method=method, answers_file=out_dir / folder / f"n_{count}.jsonl", **changes)
            done.append(evaluate(subject, run))
        score = _mean([score for _, score in done])
        return Cell(column.method, count, [protocol for protocol, _ in done], score, column.layer)

    whole = cell(_Column(ALL, {"all": get_method("cls")}), total, keep=None)
    cells = [cell(column, count, keep=_keep(column, count, subject, settings)) for column in columns for count in counts]
    floor = cell(_Column(BLIND, {"blind": get_method("cls")}), total, keep=None, blind=True) if blind else None
    names = [column_name(column.method, column.layer) for column in columns]
    comparison = Comparison(subject.name, settings.batch_size, names, whole, cells, floor)
    comparison.write(out_dir)
    return comparison


def _columns(methods: Iterable[str], layers: Sequence[int], seeds: int) -> Iterator[_Column]:
    chosen = {name: get_method(name) for name in methods}
    layered = {name for name, method in chosen.items() if layers and _has_layer(method)}
    if layers and not layered:
        raise UserError("--layers is for methods that prune inside the language model at a layer; add fastv to --methods.")
    for name, method in chosen.items():
        if name in layered:
            for layer in dict.fromkeys(layers):
                yield _Column(name, {f"{name}-layer{layer}": get_method(name, layer=layer)}, layer)
        elif hasattr(method, "seed"):
            yield _Column(name, {f"{name}-seed{seed}": seeded(name, seed) for seed in range(seeds)})
        else:
            yield _Column(name, {name: method})


def _has_layer(method: Method) -> bool:
    return traits(method).in_llm and "layer" in {field.name for field in fields(method)}  # type: ignore[arg-type]


def _keep(column: _Column, count: int, subject: Subject, settings: Settings) -> int | float:
    """The budget of a cell: inside the language model, where crops or frames are not told apart, the same share of all."""
    in_llm = traits(next(iter(column.variants.values()))).in_llm
    return count / subject.num_visual_tokens if in_llm and settings.medium.parts(subject) else count


def _refuse_what_cannot_be_pruned(subject: Subject, settings: Settings, columns: Iterable[_Column]) -> None:
    """Say so before the first cell is run."""
    for column in columns:
        for method in column.variants.values():
            with pruned(subject, replace(settings, keep=1, method=method)):
                pass


def _mean(scores: Sequence[Score | None]) -> Score:
    """The mean over the runs of a cell."""
    found = [score for score in scores if score is not None]
    if len(found) < len(scores) or len({(score.samples, score.keys) for score in found}) > 1:
        raise UserError(
            "A run answered no question, or other ones than the next, because pictures failed; the *.protocol.json files "
            "beside the answers name them, mend them and run again."
        )
    return mean_of(found)
