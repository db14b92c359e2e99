"""Evaluation: a benchmark is a `Task`, `evaluate` answers its questions, `compare` draws the table over methods and budgets."""

from __future__ import annotations

from encoders.errors import UserError
from fastervlm.eval.aokvqa import AOKVQA
from fastervlm.eval.ocrvqa import OCRVQA
from fastervlm.eval.scienceqa import SCIENCEQA
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Question, Task
from fastervlm.eval.textvqa import TEXTVQA

__all__ = ["TASKS", "Answer", "Question", "Score", "Task", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (TEXTVQA, AOKVQA, OCRVQA, SCIENCEQA)}


def get_task(name: str) -> Task:
    """The benchmark called `name`."""
    if name not in TASKS:
        raise UserError(f"There is no benchmark {name!r}; choose one of: {', '.join(TASKS)}.")
    return TASKS[name]
