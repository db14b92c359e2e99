"""MMBench, in English and Chinese: multiple choice, all in one table with its pictures in base64.

The answers of the test split are on a server, which also reads free text with a chat model. The table of the dev split holds
the right letters, and `score` reads the answers' letters itself: a lower bound of what the server finds.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import Layout
from fastervlm.eval.questions import without_image_token
from fastervlm.eval.score import Score, strays_of
from fastervlm.eval.task import Answer, Question, Submission, Task, only_asked
from fastervlm.reporting.extras import need
from fastervlm.reporting.files import read_file, write_bytes

LETTERS = "ABCD"
ASK = {"en": "Answer with the option's letter from the given choices directly.", "cn": "请直接回答选项字母。"}
SERVER = "https://mmbench.opencompass.org.cn/mmbench-submission"
CIRCULAR = 1_000_000  # rows that ask the same question with its options turned differ by a multiple of it
_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
_PREDICTION = 6
_LONGEST_INDEX = 64  # characters; what is longer is a picture
_NAMED = re.compile(r"\(?([A-Z])(?:[.:)]|$)")


@dataclass(frozen=True)
class EncodedPicture:
    """A picture inside a table; `name` says where. In newer tables `data` may name another row that holds it, by its index."""

    name: str
    data: str

    def __str__(self) -> str:
        return self.name

    @property
    def row(self) -> int | None:
        """The index of the row that holds the picture, if this one does not."""
        short = len(self.data) <= _LONGEST_INDEX and self.data.isascii() and self.data.isdecimal()
        return int(self.data) if short else None

    def open(self) -> io.BytesIO:
        """The picture's file; a `ValueError` if it is not base64."""
        if self.row is not None:
            raise ValueError(f"row {self.row} holds none")
        try:
            return io.BytesIO(base64.b64decode(self.data, validate=True))
        except binascii.Error as error:
            raise ValueError("not base64") from error


def read_questions(table: Path, image_folder: Path | None = None, *, language: str) -> list[Question]:
    """The questions of a table; the recorded prompt is hint, question and options, without the request for a letter."""
    rows = _rows(table).to_dict("records")
    shown = _pictures(rows, table)
    return [
        _question(row, place, table, language, picture)
        for place, (row, picture) in enumerate(zip(rows, shown, strict=True), start=1)
    ]


def _pictures(rows: list[dict[str, Any]], table: Path) -> list[EncodedPicture]:
    """The picture of each row, its own or that of the row it names."""
    found = [EncodedPicture(f"{table}, question {place}", str(row["image"]).strip()) for place, row in enumerate(rows, start=1)]
    held = {int(row["index"]): picture for row, picture in zip(rows, found, strict=True) if picture.row is None}
    return [picture if picture.row is None else held.get(picture.row, picture) for picture in found]


def _question(row: dict[str, Any], place: int, table: Path, language: str, picture: EncodedPicture) -> Question:
    where = f"{table}, question {place}"
    options = []
    for letter in LETTERS:
        if (option := _text(row.get(letter))) is None:
            break
        options.append(option)
    hint, asked = _text(row.get("hint")), _text(row["question"])
    if asked is None:
        raise UserError(f"{where}: the row has no question; give the table as it was released.")
    offered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    text = without_image_token("\n".join([*([hint] if hint else []), asked, *offered]), where)
    recorded = {"round_id": 0, "options": options, "option_char": list(LETTERS[: len(options)])}
    return Question(place, int(row["index"]), text, picture, tuple(options), record=recorded)


def _text(cell: Any) -> str | None:
    """A cell's text; None where the reference sees nothing: an empty cell, "nan" or "none"."""
    return None if not isinstance(cell, str) or cell.lower() in ("", "nan", "none") else cell


def _rows(table: Path) -> Any:
    """The table, texts as they stand but for empty cells and those that say nan, NA or null."""
    need("pandas", "mmbench", "A table of MMBench")
    import pandas as pd

    content = read_file(table)
    try:
        rows = pd.read_table(io.BytesIO(content), dtype=dict.fromkeys((*LETTERS, "question", "hint", "answer"), "object"))
        rows = rows.astype({"index": "int64"})
        if {"question", "image"} <= set(rows.columns) and len(rows):
            return rows
    except (ValueError, KeyError, OverflowError):
        pass
    raise UserError(f"{table} is no table of MMBench; give a .tsv with index, question, image and the options, as released.")


def letter(text: str, options: int) -> str | None:
    """The option an answer names: a letter alone, or at its beginning before a period, a colon or a bracket."""
    found = _NAMED.match(text.strip())
    return found[1] if found and found[1] in LETTERS[:options] else None


def score(answers: Sequence[Answer], table: Path, asked: Sequence[Answer] | None = None) -> Score:
    """CircularEval accuracy by letters: a question counts if it is answered right however its options are turned.

    The part is the accuracy over all rows. A row without an answer counts as wrong; of two answers to one the last counts.
    """
    rows = _rows(table)
    if "answer" not in rows.columns:
        raise UserError(f"{table} has no column of right answers, the server keeps them; run without --annotation-file.")
    every = dict(zip(rows["index"].tolist(), rows["answer"].tolist(), strict=True))
    told = {answer["question_id"]: answer["text"] for answer in answers}
    forgiven = strays_of(told, every, (), table, f"{table} has no question {{}}; use the table that the answers are to.")
    given = {name: text for name, text in told.items() if name in every}
    right = only_asked(every, None if asked is None else [each["question_id"] for each in asked])
    values = {index: float(letter(given.get(index, ""), len(LETTERS)) == right[index]) for index in right}
    turned: dict[int, list[int]] = {}
    for index in values:
        turned.setdefault(index % CIRCULAR, []).append(index)
    return Score.of(
        "Accuracy (CircularEval, letters)",
        [min(values[index] for index in turns) for turns in turned.values()],
        [Score.of("Accuracy of single rows", list(values.values()))],
        len(right) - len(given),
        keys=list(turned),
        answered=[given.keys() >= set(turns) for turns in turned.values()],
        left_out=len(told) - len(given),
        forgiven=forgiven,
    )


def indices(table: Path) -> set[Any]:
    """What names the questions of a table."""
    return set(_rows(table)["index"].tolist())


def submission(answers: Sequence[Answer], table: Path, out: Path) -> tuple[int, int]:
    """The workbook the server takes: the table without some columns, the answers in the seventh; texts stay texts."""
    need("openpyxl", "mmbench", "The submission to MMBench")
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    rows = _rows(table)
    given = {answer["question_id"]: answer["text"] for answer in answers}
    _refuse_others(given, set(rows["index"].tolist()), table)
    rows = rows.drop(columns=[name for name in _DROPPED if name in rows.columns])
    predictions = [given.get(index) for index in rows["index"].tolist()]
    rows.insert(min(_PREDICTION, len(rows.columns)), "prediction", predictions)
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(list(rows.columns))
    for row in rows.itertuples(index=False, name=None):
        cells = []
        for value in row:
            text = isinstance(value, str)
            plain = ILLEGAL_CHARACTERS_RE.sub("", value) if text else None if value is None or value != value else value
            cell = WriteOnlyCell(sheet, plain)
            if text:
                cell.data_type = "s"  # or a text that begins with = would be a formula
            cells.append(cell)
        sheet.append(cells)
    written = io.BytesIO()
    book.save(written)
    write_bytes(out, written.getvalue())
    return len(given), len(rows)


def _refuse_others(given: dict[Any, str], known: Any, table: Path) -> None:
    other = [name for name in given if name not in known]
    if other:
        raise UserError(f"{table} has no question {other[0]!r}; use the table that the answers are to.")


def _task(name: str, language: str, table: str, released: int) -> Task:
    page = "https://github.com/open-compass/MMBench"
    return Task(
        name,
        partial(read_questions, language=language),
        score,
        counts_missing=True,
        prompt=lambda question: f"{question.text}\n{ASK[language]}",
        max_new_tokens=1024,
        submission=Submission(submission, ".xlsx", SERVER, indices),
        layout=Layout.of(name, table, None, table, page, released=released),
    )


MMBENCH = _task("mmbench", "en", "mmbench_dev_20230712.tsv", 4377)
MMBENCH_CN = _task("mmbench_cn", "cn", "mmbench_dev_cn_20231003.tsv", 4329)
