"""GQA: compositional questions with one right word or phrase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.questions import read_json, read_questions
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Task

_OPEN = {"query": "Open", "choose": "Open", "logical": "Binary", "verify": "Binary", "compare": "Binary"}


def score(answers: Sequence[Answer], questions_json: Path) -> Score:
    """Accuracy over the balanced questions; without its trailing periods and in lower case, an answer must be the right one.

    Of answers to one question the last counts, and a question without an answer counts as wrong. The parts are the
    accuracies of binary and open questions and those by structural and by semantic type.
    """
    asked = _balanced(questions_json)
    given: dict[str, str] = {}
    for answer in answers:
        name = str(answer["question_id"])
        if name not in asked:
            raise UserError(f"{questions_json} has no question {name!r}; use the balanced questions of the same split.")
        given[name] = answer["text"].rstrip(".").lower()
    values = {name: float(given.get(name) == record["answer"]) for name, record in asked.items()}
    groups: dict[str, list[float]] = {}
    for name, record in asked.items():
        for group in _groups(record):
            groups.setdefault(group, []).append(values[name])
    parts = [Score.of(group, found) for group, found in sorted(groups.items())]
    return Score.of("Accuracy", list(values.values()), parts, missing=len(asked) - len(given), keys=list(asked))


def _groups(record: dict[str, Any]) -> list[str]:
    """The groups a question belongs to, as far as the file tells them."""
    types = record.get("types")
    if not isinstance(types, dict):
        return []
    structural, semantic = types.get("structural"), types.get("semantic")
    named = [f"structural {structural}"] * bool(structural) + [f"semantic {semantic}"] * bool(semantic)
    return [*([_OPEN[structural]] if structural in _OPEN else []), *named]


def _balanced(path: Path) -> dict[str, dict[str, Any]]:
    """The balanced questions of a released file by id."""
    records = read_json(path)
    try:
        found = {str(name): record for name, record in records.items() if record["isBalanced"]}
        if found and all(isinstance(record["answer"], str) for record in found.values()):
            return found
    except (AttributeError, KeyError, TypeError):
        pass
    raise UserError(f"{path} holds no balanced questions with answers; give GQA's testdev_balanced_questions.json.")


GQA = Task(name="gqa", questions=read_questions, score=score, score_flags=("question_file",))
