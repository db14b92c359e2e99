"""Evaluation: a benchmark is a `Task`, `evaluate` answers its questions, `compare` draws the table over methods and budgets."""

from __future__ import annotations

from encoders.errors import UserError
from fastervlm.eval.aokvqa import AOKVQA
from fastervlm.eval.gqa import GQA
from fastervlm.eval.mmbench import MMBENCH, MMBENCH_CN
from fastervlm.eval.mme import MME
from fastervlm.eval.ocrvqa import OCRVQA
from fastervlm.eval.pope import POPE
from fastervlm.eval.scienceqa import SCIENCEQA
from fastervlm.eval.score import Score
from fastervlm.eval.submission import MMVET, VIZWIZ, VQAV2
from fastervlm.eval.task import Answer, Question, Task
from fastervlm.eval.textvqa import TEXTVQA

__all__ = ["TASKS", "Answer", "Question", "Score", "Task", "get_task"]

_IMAGE_TASKS = (GQA, VQAV2, VIZWIZ, SCIENCEQA, TEXTVQA, POPE, MME, MMBENCH, MMBENCH_CN, MMVET, AOKVQA, OCRVQA)
TASKS: dict[str, Task] = {task.name: task for task in _IMAGE_TASKS}


def get_task(name: str) -> Task:
    """The benchmark called `name`."""
    if name not in TASKS:
        raise UserError(f"There is no benchmark {name!r}; choose one of: {', '.join(TASKS)}.")
    return TASKS[name]
