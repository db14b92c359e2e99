"""POPE: is an object in the picture or not, asked about objects that are not there in three ways of choosing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.questions import read_jsonl, read_questions
from fastervlm.eval.score import Score, Statistic
from fastervlm.eval.task import Answer, Task

PREFIX = "coco_pope_"
_COLUMNS = 4  # true positive, false positive, true negative, false negative; positive is yes


def says_yes(text: str) -> bool:
    """How the reference reads an answer: no if the words before the first period hold "No", "no" or "not", else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(answers: Sequence[Answer], annotation_dir: Path, question_file: Path) -> Score:
    """Mean F1 over the categories, which are the annotation files; the parts are each category's five numbers.

    An answer is compared with the label at its question's place within the category. Of answers to one question the last
    counts; a question without an answer is not counted, as in the reference.
    """
    labels = _labels(annotation_dir)
    places = _places(question_file, labels)
    given: dict[str | int, Answer] = {}
    for answer in answers:
        if answer["question_id"] not in places:
            raise UserError(f"{question_file} has no question {answer['question_id']!r}; use the file the answers are to.")
        given[answer["question_id"]] = answer
    categories = list(labels)
    rows = np.zeros((len(given), _COLUMNS * len(categories)))
    for row, (name, answer) in zip(rows, given.items(), strict=True):
        category, place = places[name]
        yes, right = says_yes(answer["text"]), labels[category][place]
        column = (0 if right else 1) if yes else (2 if not right else 3)
        row[_COLUMNS * categories.index(category) + column] = 1
    shown = [category for category in categories if rows[:, _block(categories, category)].any()]
    parts = [part for category in shown for part in _parts(category, rows[:, _block(categories, category)])]
    blocks = [_block(categories, category) for category in shown]

    def mean_f1(mean: np.ndarray) -> np.ndarray:
        return np.mean([_f1(mean[..., block]) for block in blocks], axis=0)

    # What is missing is not wrong here, so that it is told beside the score and not by it.
    missing = len(places) - len(given)
    return Score.of("Mean F1", rows, parts, missing, keys=list(given), statistic=mean_f1, missing_is="not counted")


def _block(categories: list[str], category: str) -> slice:
    start = _COLUMNS * categories.index(category)
    return slice(start, start + _COLUMNS)


def _parts(category: str, rows: np.ndarray) -> list[Score]:
    """Accuracy, precision, recall, F1 and the share of yes of one category."""
    rows = rows[rows.any(axis=1)]
    measures: dict[str, Statistic] = {
        "F1": _f1,
        "accuracy": lambda mean: 100 * (mean[..., 0] + mean[..., 2]) / mean.sum(axis=-1),
        "precision": lambda mean: _ratio(mean[..., 0], mean[..., 0] + mean[..., 1]),
        "recall": lambda mean: _ratio(mean[..., 0], mean[..., 0] + mean[..., 3]),
        "yes ratio": lambda mean: 100 * (mean[..., 0] + mean[..., 1]) / mean.sum(axis=-1),
    }
    return [Score.of(f"{category} {name}", rows, statistic=measure) for name, measure in measures.items()]


def _f1(mean: np.ndarray) -> np.ndarray:
    """F1 of yes in percent; 0 where nothing was answered yes, of which the reference dies."""
    return _ratio(2 * mean[..., 0], 2 * mean[..., 0] + mean[..., 1] + mean[..., 3])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 * part / whole, 0 where there is none."""
    return 100 * np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _labels(folder: Path) -> dict[str, list[bool]]:
    """Of each category, whether the right answers are yes, in order."""
    files = sorted(folder.glob(f"{PREFIX}*.json")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} holds no {PREFIX}*.json; give the folder with POPE's annotation files as --annotation-dir.")
    found = {}
    for file in files:
        records = read_jsonl(file)
        if not all(record.get("label") in ("yes", "no") for _, record in records):
            raise UserError(f"{file} is no annotation file of POPE; each line needs the label yes or no.")
        found[file.stem.removeprefix(PREFIX)] = [record["label"] == "yes" for _, record in records]
    return found


def _places(question_file: Path, labels: dict[str, list[bool]]) -> dict[str | int, tuple[str, int]]:
    """Category and place within it of each question."""
    counts: Counter[str] = Counter()
    places: dict[str | int, tuple[str, int]] = {}
    for line, record in read_jsonl(question_file):
        category, name = record.get("category"), record.get("question_id")
        if not isinstance(name, str | int) or category not in labels:
            known = ", ".join(labels)
            raise UserError(f"{question_file}, line {line}: 'question_id' and a category are needed, one of {known}.")
        if name in places:
            raise UserError(f"{question_file}, line {line}: question {name!r} stands there twice; give the file as released.")
        if counts[category] >= len(labels[category]):
            raise UserError(f"{question_file} has more {category} questions than {PREFIX}{category}.json has labels.")
        places[name] = category, counts[category]
        counts[category] += 1
    return places


POPE = Task(name="pope", questions=read_questions, score=score, score_flags=("annotation_dir", "question_file"))
