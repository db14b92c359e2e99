"""What a benchmark compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoders.errors import UserError
from fastervlm.eval.answers import answers_in
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.inllm import FastV
from fastervlm.selection.budget import TokenBudget

FULL = "full"


@dataclass(frozen=True)
class Case:
    """A model pruned by one method at one budget, or as it is.

    `visual_tokens` are those left of a picture, or of one crop; `settings` say the same to the evaluation, which gives the
    score.
    """

    method: str
    visual_tokens: int
    settings: Settings


def fastv(subject: Subject, settings: Settings, budgets: Sequence[int | float], layer: int, out_dir: Path) -> list[Case]:
    """FastV's latency experiment: the model as it is, then FastV and the [CLS] method at the same counts.

    Of a model with crops the budgets are those of each crop; FastV, which ranks the tokens of all crops together, keeps the
    same share of them. Source: FastV, arXiv 2403.06764.
    """
    total = subject.num_visual_tokens
    if total is None:
        raise UserError(
            f"This benchmark compares with FastV, by which a {subject.family.class_name} cannot be pruned; "
            "use fastervlm bench model --methods none,coverage instead."
        )
    counts = sorted({TokenBudget(keep=keep).resolve(total) for keep in budgets} - {total}, reverse=True)
    methods = {"fastv": (f"fastv-layer{layer}", FastV(layer=layer)), "cls": ("cls", "cls")}

    def case(name: str, folder: str, count: int, **pruning: object) -> Case:
        return Case(name, count, replace(settings, answers_file=answers_in(out_dir, folder, count), **pruning))  # type: ignore[arg-type]

    def keep(name: str, count: int) -> int | float:
        return count / total if name == "fastv" and subject.has_crops else count

    whole = case(FULL, "all", total, keep=None)
    return [whole] + [
        case(name, folder, count, keep=keep(name, count), method=method)
        for name, (folder, method) in methods.items()
        for count in counts
    ]


PRESETS: dict[str, Callable[..., list[Case]]] = {"fastv": fastv}
