"""Video question answering in the layout of Video-ChatGPT and Video-LLaVA: test_q.json, test_a.json and a folder of videos."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.questions import inside, read_json, read_jsonl, without_image_token
from fastervlm.eval.task import Answer, Question, is_name
from fastervlm.reporting.files import write_text

# Endings of the files of MSVD, MSRVTT, TGIF and ActivityNet, of their usual conversions, and of other films.
ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv", ".ts", ".m2ts", ".3gp")
SPELLINGS = ("", *ENDINGS, *map(str.upper, ENDINGS))
VIDEO_TOKEN = "<video>"


@dataclass(frozen=True)
class Prediction:
    """A question, what is right and what was answered, by the reference's names; `type` is "" where test_a.json names none."""

    id: str | int
    question: str
    answer: str
    pred: str = ""
    type: str = ""


def read_questions(question_file: Path, video_dir: Path | None) -> list[Question]:
    """The questions of a test_q.json, in its order; a video's file is found by its name, with or without ending and `v_`."""
    if video_dir is None or not video_dir.is_dir():
        raise UserError(f"The video folder {video_dir} does not exist; give the folder that holds the videos.")
    folder = video_dir.resolve()
    return [
        Question(place, name, text, _file_of(folder, video, f"{question_file}, question {place}"), record={"line": place})
        for place, (name, text, video) in enumerate(_asked(question_file), start=1)
    ]


def read_right(question_file: Path, answer_file: Path) -> list[Prediction]:
    """What a test_a.json says of the questions of a test_q.json, which it answers in the same order; not predicted yet."""
    asked, records = _asked(question_file), read_json(answer_file)
    if not isinstance(records, list) or not all(isinstance(record, dict) and "answer" in record for record in records):
        raise UserError(f"{answer_file} is no JSON list of answers; give the test_a.json that belongs to {question_file}.")
    if len(records) != len(asked):
        raise UserError(f"{answer_file} has {len(records)} answers to the {len(asked)} questions of {question_file}.")
    for place, ((name, _, _), record) in enumerate(zip(asked, records, strict=True), start=1):
        if record.get("question_id", name) != name:
            raise UserError(
                f"{answer_file}, answer {place}: it is for question {record['question_id']!r}, but {question_file} asks "
                f"{name!r} there; give the two files of one release."
            )
    return [
        Prediction(name, text, str(record["answer"]), type=str(record.get("type", "")))
        for (name, text, _), record in zip(asked, records, strict=True)
    ]


def predictions_of(answers: Sequence[Answer], question_file: Path, answer_file: Path) -> list[Prediction]:
    """The answers beside what is right, by their lines: an id and its question may stand there again, about another video.

    An answer without a line is to the first such question that is left.

    Raises:
        UserError: a question is not in the files.
    """
    right = read_right(question_file, answer_file)
    left: dict[tuple[str | int, str], list[int]] = {}
    for line, one in enumerate(right, start=1):
        left.setdefault((one.id, one.question), []).append(line)
    found = []
    for given in answers:
        name, text = given["question_id"], given["prompt"]
        lines = left.get((name, text), [])
        line = given.get("line", lines[0] if lines else None)
        if line not in lines:
            raise UserError(f"{question_file} has no question {name!r} that is {text!r}; use the files of the answers.")
        lines.remove(line)
        found.append(replace(right[line - 1], pred=given["text"]))
    return found


def read_predictions(path: Path) -> list[Prediction]:
    """Answers in the form that the reference writes and reads: a JSON object a line with id, question, answer and pred."""
    found = []
    for line, record in read_jsonl(path):
        if "id" not in record or not all(isinstance(record.get(key), str) for key in ("question", "answer", "pred")):
            raise UserError(f"{path}, line {line}: an answer needs 'id', 'question', 'answer' and 'pred'.")
        found.append(
            Prediction(record["id"], record["question"], record["answer"], record["pred"], str(record.get("type", "")))
        )
    if not found:
        raise UserError(f"{path} holds no answer.")
    return found


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write what `read_predictions` reads, whole or not at all."""
    records = (
        {key: value for key, value in asdict(prediction).items() if value != "" or key != "type"} for prediction in predictions
    )
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def _asked(question_file: Path) -> Sequence[tuple[str | int, str, str]]:
    """Id, text and video of each question."""
    records = read_json(question_file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{question_file} is no JSON list of questions; give a test_q.json.")
    return [_question(record, f"{question_file}, question {place}") for place, record in enumerate(records, start=1)]


def _question(record: Any, where: str) -> tuple[str | int, str, str]:
    fields = [record.get(key) if isinstance(record, dict) else None for key in ("question_id", "question", "video_name")]
    name, text, video = fields
    if not is_name(name) or not isinstance(text, str) or not isinstance(video, str) or not Path(video).name:
        raise UserError(f"{where}: it needs 'question_id', 'question' and 'video_name'.")
    return name, plain_text(text, where), video


def plain_text(text: str, where: str) -> str:
    """The question itself; refused if it would place a video or a picture, or is no text."""
    if VIDEO_TOKEN in text:
        raise UserError(f"{where}: the question holds {VIDEO_TOKEN}; remove it, the prompt template places the video.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the question {text!r} holds half a character, which is no text; remove it.") from None
    return without_image_token(text, where)


def _file_of(folder: Path, video: str, where: str) -> Path:
    """The file of exactly that name, else the first with an ending or `v_`; if there is none, the one that is missed."""
    named = inside(folder, video, where)
    candidates = [named.with_name(f"{prefix}{named.name}{ending}") for prefix in ("", "v_") for ending in SPELLINGS]
    for file in candidates:
        if os.path.isfile(file):  # False too where a name is too long
            return inside(folder, str(file.relative_to(folder)), where)
    return named if named.suffix.lower() in ENDINGS else named.with_name(f"{named.name}{ENDINGS[0]}")
