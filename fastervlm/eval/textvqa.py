"""TextVQA: short answers about text in pictures, each compared with the answers of ten people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import LLAVA, Layout
from fastervlm.eval.normalize import normalize
from fastervlm.eval.questions import read_questions
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Task, keys_of
from fastervlm.reporting.files import parse_json, read_file

PEOPLE = 10


def question_of(prompt: str) -> str:
    """The question inside a prompt, not stripped.

    Three forms of prompt are known: `OCR tokens: ... Question: Q Short answer:`; three lines with a `Reference OCR token: `
    line before or after the question; two lines, the question first.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1)
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0]
    elif len(lines) == 2:
        return lines[0]
    raise UserError(
        f"The prompt {prompt!r} has none of the three forms of TextVQA; use the question file of the LLaVA scripts."
    )


def answer_values(answers: Sequence[str]) -> dict[str, float]:
    """What each normalised answer earns: the mean over the ten ways to leave one person out of min(1, agreeing / 3).

    One, two, three and four equal answers of ten earn 0.3, 0.6, 0.9 and 1.0; an answer that nobody gave earns 0.
    """
    given = [normalize(answer) for answer in answers]
    values = {}
    for answer in set(given):
        others = [given.count(answer) - (left_out == answer) for left_out in given]
        total = 0.0
        for agreeing in others:  # sum() rounds otherwise from Python 3.12 on
            total += min(1.0, agreeing / 3)
        values[answer] = total / len(others)
    return values


def read_annotations(path: Path) -> dict[tuple[Any, str], dict[str, Any]]:
    """Annotations by (image id, lower-cased question); of equal keys the last one counts."""
    content = read_file(path)
    try:
        records = parse_json(content)["data"]
        return {(record["image_id"], record["question"].lower()): record for record in records}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is no TextVQA annotation file; it must be a JSON object whose 'data' lists image_id, question, answers."
        ) from None


def score(answers: Sequence[Answer], annotation_file: Path) -> Score:
    """TextVQA accuracy of `answers`; questions without an answer do not count, an answer given twice counts twice."""
    annotations = read_annotations(annotation_file)
    values = [_value(answer, annotations, annotation_file) for answer in answers]
    return Score.of("Accuracy", values, keys=keys_of(answers))


def _value(answer: Answer, annotations: dict[tuple[Any, str], dict[str, Any]], path: Path) -> float:
    key = (answer["question_id"], question_of(answer["prompt"]).lower())
    if key not in annotations:
        raise UserError(
            f"{path} has no annotation for question {key[0]!r} ({key[1]!r}); use the annotations of the same split."
        )
    given = annotations[key].get("answers")
    if not isinstance(given, list) or len(given) != PEOPLE or not all(isinstance(text, str) for text in given):
        raise UserError(
            f"Question {annotations[key].get('question_id', key[0])} in {path} does not have ten answers; TextVQA needs ten."
        )
    return answer_values(given).get(normalize(answer["text"]), 0.0)


_PAGE = "https://textvqa.org/dataset"
TEXTVQA = Task(
    name="textvqa",
    questions=read_questions,
    score=score,
    reads_prompt=True,
    selector=lambda asked: question_of(asked.text),
    layout=Layout.of(
        *("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"),
        *(LLAVA, f"train_val_images.zip of {_PAGE}", _PAGE),
        released=5000,
    ),
)
