"""A user's own questions with answers: one JSON object a line, with `image`, `question` and `answer` (or `answers`)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.normalize import normalize
from fastervlm.eval.questions import existing_folder, inside, kind_in, read_jsonl, without_image_token
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Question, Task


def questions_of(path: Path, image_folder: Path | None) -> list[Question]:
    """The questions of a file, named by their lines; pictures lie in the folder, that of the file if none is given."""
    folder = existing_folder(image_folder or path.parent)
    found = [_question(record, line, path, folder) for line, record in read_jsonl(path)]
    if not found:
        raise UserError(f"{path} holds no question; give one JSON object a line, with image, question and answer.")
    return found


def _question(record: dict[str, Any], line: int, path: Path, folder: Path) -> Question:
    image, text = record.get("image"), record.get("question")
    if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
        raise UserError(f"{path}, line {line}: a question needs 'image' and 'question', texts both.")
    _right(record, line, path)
    where = f"{path}, line {line}"
    asked = without_image_token(text, where), inside(folder, image, where)
    return Question(line, str(line), *asked, kind=kind_in(record))


def _right(record: dict[str, Any], line: int, path: Path) -> set[str]:
    given = record.get("answers", record.get("answer"))
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}, line {line}: give 'answer', a text, or 'answers', a list of texts of which one is enough.")
    forms = set(map(_form, texts)) - {""}
    if not forms:
        raise UserError(f"{path}, line {line}: the right answer is empty; write it out, or leave the question out.")
    return forms


def _form(text: str) -> str:
    """What two answers are compared by: as TextVQA does, and bare where nothing would be left, as of A or +."""
    return normalize(text) or text.strip(string.punctuation + string.whitespace).lower() or text.strip()


def score(answers: Sequence[Answer], path: Path) -> Score:
    """The share of answers that equal one of the right ones, both normalised as TextVQA does; a letter A stays one."""
    right = {str(line): _right(record, line, path) for line, record in read_jsonl(path)}
    values = [float(_form(answer["text"]) in right[str(answer["question_id"])]) for answer in answers]
    return Score.of("Accuracy", values, keys=[str(answer["question_id"]) for answer in answers])


OWN = Task(name="own", questions=questions_of, score=score, answers_inside=True)
"""Questions of a user's own, each with its right answer beside it."""
