"""Reading question files, checked whole before a model is loaded: one JSON object a line, or one JSON document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.task import Question, is_name
from fastervlm.reporting.files import parse_json, read_file

IMAGE_TOKEN = "<image>"


def read_questions(question_file: Path, image_folder: Path | None) -> list[Question]:
    """The questions of a LLaVA question file (`question_id`, `image`, `text`), in the file's order.

    `image` is the name of a picture, or a list of the names of several, which stand in front of the text in their order.
    """
    folder = existing_folder(image_folder)
    questions = [_question(record, line, question_file, folder) for line, record in read_jsonl(question_file)]
    if not questions:
        raise UserError(f"The question file {question_file} holds no question.")
    return questions


def existing_folder(image_folder: Path | None) -> Path:
    """The image folder, resolved."""
    if image_folder is None:
        raise UserError("The questions show pictures; give --image-folder, the folder that holds them.")
    if not image_folder.is_dir():
        raise UserError(f"The image folder {image_folder} does not exist; give the folder that holds the pictures.")
    return image_folder.resolve()


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    content = read_file(path)
    try:
        return parse_json(content)
    except ValueError:
        raise UserError(f"{path} is not valid JSON; give the file as it was released.") from None


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their line numbers, from 1; empty lines are skipped."""
    lines = read_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [(number, _parse(line, path, number)) for number, line in enumerate(lines, start=1) if line.strip()]


def read_jsonl_cut(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], int | None]:
    """As `read_jsonl`, without a last line that was cut off as it was written, and that line's number."""
    lines = read_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records += [(number, _parse(line, path, number))] if line.strip() else []
        except UserError:
            if number < len(lines):
                raise
            return records, number
    return records, None


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError:
        raise UserError(f"{path}, line {number}: this is not valid JSON; each line must be one JSON object.") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: this is not a JSON object; each line must be one.")
    return record


def _question(record: dict[str, Any], line: int, path: Path, folder: Path) -> Question:
    question_id, text = record.get("question_id"), record.get("text")
    if not is_name(question_id):
        raise UserError(f"{path}, line {line}: 'question_id' must be a text or a whole number.")
    if not isinstance(text, str):
        raise UserError(f"{path}, line {line}: 'text' with the question is missing.")
    where = f"{path}, line {line}"
    image, *more = (inside(folder, name, where) for name in _names(record.get("image"), where))
    return Question(line, question_id, without_image_token(text, where), image, more=tuple(more), kind=kind_in(record))


def _names(image: Any, where: str) -> list[str]:
    """The names of a question's pictures: one text, or a list of several."""
    names = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"{where}: the question has no image; 'image' must name a file in the image folder, or be a list of such names."
        )
    return names


def kind_in(record: dict[str, Any]) -> str | None:
    """What kind of question it is, where a record says so."""
    kind = record.get("category")
    return kind if isinstance(kind, str) and kind else None


def without_image_token(text: str, where: str) -> str:
    """The text itself; refused if it would place a picture."""
    if IMAGE_TOKEN in text:
        raise UserError(f"{where}: the question holds {IMAGE_TOKEN}; remove it, the prompt template places the picture.")
    return text


def inside(folder: Path, image: str, where: str) -> Path:
    """The picture's path; refused if it leaves the image folder by an absolute path, `..` or a link."""
    try:
        inside = not Path(image).is_absolute() and (folder / image).resolve().is_relative_to(folder)
    except UnicodeError:
        return folder / image  # no file is called so, which is said of this question alone
    except (ValueError, OSError, RuntimeError):
        inside = False
    if not inside:
        raise UserError(f"{where}: the image path {image!r} leads out of the image folder; only pictures inside it are read.")
    return folder / image
