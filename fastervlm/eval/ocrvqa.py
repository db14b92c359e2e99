"""OCR-VQA: questions about book covers, scored by ROUGE-L as FastV's table of layers and budgets is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import Layout
from fastervlm.eval.normalize import clean
from fastervlm.eval.questions import existing_folder, inside, read_json, without_image_token
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Question, Task, keys_of

COVERS = 500
TEST = 3
BETA = 1.2


def read_questions(question_file: Path, image_folder: Path | None) -> list[Question]:
    """All questions about the first 500 covers of the test split; a cover's picture is named by its key."""
    folder = existing_folder(image_folder)
    covers = ((key, record) for key, record in _records(question_file).items() if record.get("split") == TEST)
    asked = [
        (f"{key}-{i}", text, _picture(folder, key, record, question_file))
        for key, record in islice(covers, COVERS)
        for i, text in enumerate(record["questions"])
    ]
    if not asked:
        raise UserError(f"{question_file} holds no question of the test split (split 3).")
    return [
        Question(place, name, without_image_token(text, f"{question_file}, {name}"), image)
        for place, (name, text, image) in enumerate(asked, start=1)
    ]


def _picture(folder: Path, key: str, record: dict[str, Any], path: Path) -> Path:
    """Named by the key and the ending of the address it was loaded from, or by .jpg, as LLaVA's data have it."""
    ending = Path(str(record.get("imageURL", ""))).suffix or ".jpg"
    named = inside(folder, f"{key}{ending}", f"{path}, {key}")
    return named if named.exists() else named.with_suffix(".jpg")


def _records(path: Path) -> dict[str, dict[str, Any]]:
    records = read_json(path)
    if not isinstance(records, dict) or not all(_is_cover(record) for record in records.values()):
        raise UserError(
            f"{path} is no file of OCR-VQA; it must be the released dataset.json: split, questions and answers by key."
        )
    return records


def _is_cover(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    questions, answers = record.get("questions"), record.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        return False
    return all(isinstance(text, str) for text in (*questions, *answers))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L of two texts split at single spaces: F with beta 1.2 of the longest common subsequence.

    Precision and recall are each the highest over the references, so they may come from different ones. An empty text is
    one empty word. Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", as COCO's caption evaluation has it.
    """
    words = answer.split(" ")
    lengths = [(_common(words, reference.split(" ")), len(reference.split(" "))) for reference in references]
    precision = max(common / len(words) for common, _ in lengths)
    recall = max(common / length for common, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return row[-1]


def score(answers: Sequence[Answer], annotation_file: Path) -> Score:
    """Mean ROUGE-L of `answers`, each compared with the one right answer after both are cleaned."""
    records = _records(annotation_file)
    right = {f"{key}-{i}": text for key, record in records.items() for i, text in enumerate(record["answers"])}
    for answer in answers:
        if answer["question_id"] not in right:
            raise UserError(f"{annotation_file} has no question {answer['question_id']!r}; use the file of the questions.")
    values = [rouge_l(clean(a["text"]), [clean(right[str(a["question_id"])])]) for a in answers]
    return Score.of("ROUGE-L", values, keys=keys_of(answers))


_PAGE = "https://ocr-vqa.github.io"
_LAYOUT = Layout.of("ocrvqa", "dataset.json", "images", "dataset.json", _PAGE, f"{_PAGE}, each under its key")
OCRVQA = Task(name="ocrvqa", questions=read_questions, score=score, max_new_tokens=50, answers_inside=True, layout=_LAYOUT)
