"""GQA: compositional questions with one right word or phrase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import LLAVA, Layout
from fastervlm.eval.questions import read_json, read_questions
from fastervlm.eval.score import Score, strays_of
from fastervlm.eval.task import Answer, Task, only_asked


def score(answers: Sequence[Answer], questions_json: Path, asked: Sequence[Answer] | None = None) -> Score:
    """Accuracy over the balanced questions; without its trailing periods and in lower case, an answer must be the right one.

    Of answers to one question the last counts, a question without an answer counts as wrong, and answers to questions that
    are not balanced are left out. The parts are the accuracies of binary and open questions, of which open are those that
    query, and those by structural and by semantic type.
    """
    balanced, others = _balanced(questions_json)
    right = only_asked(balanced, None if asked is None else [str(each["question_id"]) for each in asked])
    every = {str(answer["question_id"]): answer["text"].rstrip(".").lower() for answer in answers}
    given = {name: text for name, text in every.items() if name in right}
    refusal = f"{questions_json} has no balanced question {{}}; use the questions of the same split."
    forgiven = strays_of(every, right, others, questions_json, refusal)
    values = {name: float(given.get(name) == record["answer"]) for name, record in right.items()}
    groups: dict[str, list[float]] = {}
    for name, record in right.items():
        for group in _groups(record):
            groups.setdefault(group, []).append(values[name])
    parts = [Score.of(group, found) for group, found in sorted(groups.items())]
    left_out = len(every) - len(given)
    unbalanced = sum(name in others for name in every) - len(given)
    return Score.of(
        "Accuracy",
        list(values.values()),
        parts,
        len(right) - len(given),
        keys=list(right),
        answered=[name in given for name in right],
        notes=[f"Answers to questions that are not balanced, left out: {unbalanced}"] if unbalanced else (),
        left_out=left_out,
        forgiven=forgiven,
    )


def _groups(record: dict[str, Any]) -> list[str]:
    """The groups a question belongs to, as far as the file tells them."""
    types = record.get("types")
    if not isinstance(types, dict):
        return []
    structural, semantic = types.get("structural"), types.get("semantic")
    kind = ["Open" if structural == "query" else "Binary", f"structural {structural}"] if structural else []
    return [*kind, *([f"semantic {semantic}"] if semantic else [])]


def _balanced(path: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The balanced questions of a released file by id, and the ids of all its questions."""
    records = read_json(path)
    try:
        found = {str(name): record for name, record in records.items() if record["isBalanced"]}
        if found and all(isinstance(record["answer"], str) for record in found.values()):
            return found, {str(name) for name in records}
    except (AttributeError, KeyError, TypeError):
        pass
    raise UserError(f"{path} holds no balanced questions with answers; give GQA's testdev_balanced_questions.json.")


_PAGE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_LAYOUT = Layout.of(
    *("gqa", "llava_gqa_testdev_balanced.jsonl", "data/images", "data/testdev_balanced_questions.json"),
    *(LLAVA, _PAGE, _PAGE),
    released=12578,
)
GQA = Task(
    name="gqa",
    questions=read_questions,
    score=score,
    score_flags=("question_file",),
    counts_missing=True,
    layout=_LAYOUT,
)
