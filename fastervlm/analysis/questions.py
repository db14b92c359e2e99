"""Questions of LLaVA conversations, as its training data have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from encoders.errors import UserError
from fastervlm.eval.questions import IMAGE_TOKEN, existing_folder, inside, read_json, read_jsonl
from fastervlm.eval.task import Question, Task
from fastervlm.reporting.files import read_file

_HEAD = 1 << 16


def is_conversations(path: Path) -> bool:
    """Whether a file holds LLaVA conversations, by its first records."""
    return re.search(rb'"conversations"\s*:', read_file(path, _HEAD)) is not None


def read_conversations(path: Path, image_folder: Path | None) -> list[Question]:
    """The first human turn of each conversation, its `<image>` taken out; `image` is None where there is no picture.

    The file is a JSON list or one object a line, of `conversations`, `image` and `id`.
    """
    folder = existing_folder(image_folder)
    return [_question(record, number, path, folder) for number, record in _records(path)]


def _records(path: Path) -> list[tuple[int, Any]]:
    listed = read_file(path, _HEAD).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return list(enumerate(read_json(path), start=1)) if listed else read_jsonl(path)


def _question(record: Any, number: int, path: Path, folder: Path) -> Question:
    where = f"{path}, conversation {number}"
    record = record if isinstance(record, dict) else {}
    turns, image = record.get("conversations"), record.get("image")
    turns = turns if isinstance(turns, list) else []
    first = next((turn for turn in turns if isinstance(turn, dict) and turn.get("from") == "human"), {})
    text = first.get("value")
    if not isinstance(text, str):
        raise UserError(f"{where}: it needs 'conversations' with a turn 'from' 'human' that has a text as 'value'.")
    if image is not None and not isinstance(image, str):
        raise UserError(f"{where}: 'image' must name one file in the image folder.")
    shown = inside(folder, image, where) if image else None
    return Question(number, str(record.get("id", number)), text.replace(IMAGE_TOKEN, "").strip(), shown)


def _no_score(*_: object) -> NoReturn:
    raise UserError("Conversations have no right answers to score by; give a benchmark's questions.")


CONVERSATIONS = Task(name="conversations", questions=read_conversations, score=_no_score)
