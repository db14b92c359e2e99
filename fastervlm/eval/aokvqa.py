"""A-OKVQA: four options and knowledge that the picture does not show, asked as FastV's latency experiment asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import COCO, Layout
from fastervlm.eval.questions import existing_folder, inside, read_json, without_image_token
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Question, Task, keys_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ASK = (
    "\nAnalyse the image and choose the best answer for the following question:\n{}\n"
    "Options: {}\n"
    "Just output the letter of the correct answer."
)
_LAYOUT = "it must be a JSON list of question_id, image_id, question, choices, such as aokvqa_v1p0_val.json"


def read_questions(question_file: Path, image_folder: Path | None) -> list[Question]:
    """The questions of a released file; their pictures are COCO's, named by twelve digits."""
    folder = existing_folder(image_folder)
    records = enumerate(_records(question_file).values(), start=1)
    return [_question(record, place, folder, f"{question_file}, question {place}") for place, record in records]


def _question(record: dict[str, Any], place: int, folder: Path, where: str) -> Question:
    offered = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, record["choices"], strict=False))
    text = without_image_token(ASK.format(record["question"], offered), where)
    image = inside(folder, f"{record['image_id']:012d}.jpg", where)
    return Question(place, record["question_id"], text, image, tuple(record["choices"]))


def _records(path: Path) -> dict[str, dict[str, Any]]:
    """What the file says, by question id and in its order."""
    records = read_json(path)
    if not isinstance(records, list) or not records or not all(_is_question(record) for record in records):
        raise UserError(f"{path} is no file of A-OKVQA; {_LAYOUT}.")
    found = {record["question_id"]: record for record in records}
    if len(found) < len(records):
        raise UserError(f"{path} uses a question_id twice; give the file as it was released.")
    return found


def _is_question(record: Any) -> bool:
    if not isinstance(record, dict) or type(record.get("image_id")) is not int:
        return False
    choices = record.get("choices")
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        return False
    return all(isinstance(text, str) for text in (record.get("question_id"), record.get("question"), *choices))


def score(answers: Sequence[Answer], annotation_file: Path) -> Score:
    """The share of answers that contain the letter of the right option, anywhere, as FastV counts."""
    records = _records(annotation_file)
    values = [float(_letter(answer, records, annotation_file) in answer["text"]) for answer in answers]
    return Score.of("Accuracy (right letter in the answer)", values, keys=keys_of(answers))


def _letter(answer: Answer, records: dict[str, dict[str, Any]], path: Path) -> str:
    record = records.get(str(answer["question_id"]))
    if record is None:
        raise UserError(f"{path} has no question {answer['question_id']!r}; use the file of the same split.")
    right = record.get("correct_choice_idx")
    if type(right) is not int or not 0 <= right < len(record["choices"]):
        raise UserError(f"Question {answer['question_id']} in {path} has no correct_choice_idx; the test split has no answers.")
    return LETTERS[right]


_FILE, _PAGE = "aokvqa_v1p0_val.json", "https://github.com/allenai/aokvqa"
_LAYOUT = Layout.of("aokvqa", _FILE, "val2017", _FILE, _PAGE, COCO, released=1145)
AOKVQA = Task(name="aokvqa", questions=read_questions, score=score, max_new_tokens=1, answers_inside=True, layout=_LAYOUT)
