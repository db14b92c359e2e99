"""POPE: is an object in the picture or not, asked about objects that are not there in three ways of choosing them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.layout import COCO, LLAVA, Layout
from fastervlm.eval.questions import read_jsonl, read_questions
from fastervlm.eval.score import Score, Statistic, strayed
from fastervlm.eval.task import Answer, Task, is_name, only_asked

PREFIX = "coco_pope_"
_TYPO = "imange"  # in some questions of the release, mended in some copies
_OBJECT = re.compile(r"Is there an? (.+) in the image\?", re.IGNORECASE)
_COLUMNS = 4  # true positive, false positive, true negative, false negative; positive is yes


@dataclass(frozen=True)
class Label:
    """Whether the right answer is yes, and the picture and the question it belongs to as far as the file tells."""

    yes: bool
    image: Any
    text: Any


def says_yes(text: str) -> bool:
    """How the reference reads an answer: no if the words before the first period hold "No", "no" or "not", else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_unclear(text: str) -> bool:
    """Whether the reference takes for a yes what does not say yes: a picture described, nothing at all, a "NO!"."""
    return says_yes(text) and "yes" not in re.findall(r"[a-z]+", text.lower())


def score(answers: Sequence[Answer], annotation_dir: Path, question_file: Path, asked: Sequence[Answer] | None = None) -> Score:
    """Mean F1 over the categories, which are the annotation files; the parts are each category's five numbers.

    An answer is compared with the label at its question's place within the category. Of answers to one question the last
    counts; a question without an answer is not counted, as in the reference, and neither is one of a category without labels.
    A note tells how many answers say neither yes nor no.
    """
    labels = _labels(annotation_dir)
    every_place, others, reworded = _places(question_file, labels)
    places = only_asked(every_place, None if asked is None else [each["question_id"] for each in asked])
    every = {answer["question_id"]: answer for answer in answers}
    given = {name: answer for name, answer in every.items() if name in places}
    if (name := strayed(every, places, others)) is not None:
        raise UserError(f"{question_file} has no question {name!r} that has a label; use the file the answers are to.")
    rows = np.zeros((len(given), _COLUMNS * len(labels)))
    for row, (name, answer) in zip(rows, given.items(), strict=True):
        category, place = places[name]
        yes, right = says_yes(answer["text"]), labels[category][place].yes
        row[_COLUMNS * list(labels).index(category) + (yes != right) + 2 * (not yes)] = 1
    left_out = len(every) - len(given)
    notes = [f"Answers of categories without labels, left out: {left_out}"] if left_out else []
    if unclear := sum(is_unclear(answer["text"]) for answer in given.values()):
        notes.append(f"Answers without a plain yes or no, read as yes as in the reference: {unclear}")
    found = _score(list(labels), rows, list(given), len(places) - len(given), notes, left_out)
    words = f"{reworded} of the {len(every_place)} questions of {question_file} are asked in other words than their labels."
    return replace(found, forgiven=(words,)) if reworded else found


def _score(
    categories: list[str], rows: np.ndarray, names: list[str | int], missing: int, notes: Sequence[str], left_out: int
) -> Score:
    """The score of questions called `names` that earned `rows` (questions, columns of all categories)."""
    blocks = {category: rows[:, _COLUMNS * i : _COLUMNS * (i + 1)] for i, category in enumerate(categories)}
    shown = {category: block[block.any(axis=1)] for category, block in blocks.items() if block.any()}
    parts = [part for category, block in shown.items() for part in _parts(category, block)]
    counts = [
        f"{category} TP, FP, TN, FN: {', '.join(str(int(count)) for count in block.sum(axis=0))}"
        for category, block in shown.items()
    ]
    # What is missing is not wrong here, so that it is told beside the score and not by it.
    more = {"missing_is": "not counted", "notes": [*counts, *notes], "left_out": left_out}
    return Score.of("Mean F1", rows, parts, missing, keys=names, statistic=_mean_f1, **more)


def _mean_f1(mean: np.ndarray) -> np.ndarray:
    """The mean F1 of the categories that the mean rows (..., d) hold."""
    blocks = mean.reshape(*mean.shape[:-1], -1, _COLUMNS)
    held = blocks.any(axis=-1)
    return np.where(held, _f1(blocks), 0.0).sum(axis=-1) / held.sum(axis=-1)


def _parts(category: str, rows: np.ndarray) -> list[Score]:
    """Accuracy, precision, recall, F1 and the share of yes of one category."""
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


def _labels(folder: Path) -> dict[str, list[Label]]:
    """The labels of each category, in order."""
    files = sorted(folder.glob(f"{PREFIX}*.json")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} holds no {PREFIX}*.json; give the folder with POPE's annotation files as --annotation-dir.")
    found = {}
    for file in files:
        records = [record for _, record in read_jsonl(file)]
        if not all(record.get("label") in ("yes", "no") for record in records):
            raise UserError(f"{file} is no annotation file of POPE; each line needs the label yes or no.")
        found[file.stem.removeprefix(PREFIX)] = [
            Label(record["label"] == "yes", record.get("image"), record.get("text")) for record in records
        ]
    return found


def _places(
    question_file: Path, labels: dict[str, list[Label]]
) -> tuple[dict[str | int, tuple[str, int]], set[str | int], int]:
    """Category and place within it of each question, those of categories without labels, and how many have other words."""
    reworded = 0
    counts: Counter[str] = Counter()
    places: dict[str | int, tuple[str, int]] = {}
    others: set[str | int] = set()
    for line, record in read_jsonl(question_file):
        category, name = record.get("category"), record.get("question_id")
        if not is_name(name) or not isinstance(category, str):
            raise UserError(
                f"{question_file}, line {line}: 'question_id' and 'category' are needed; give the file as released."
            )
        if name in places or name in others:
            raise UserError(f"{question_file}, line {line}: question {name!r} stands there twice; give the file as released.")
        if category not in labels:
            others.add(name)
            continue
        places[name] = category, counts[category]
        if counts[category] < len(labels[category]):
            reworded += _is_reworded(record, labels[category][counts[category]], f"{question_file}, line {line}")
        counts[category] += 1
    for category, right in labels.items():
        if counts[category] != len(right):
            raise UserError(
                f"{question_file} has {counts[category]} {category} questions and {PREFIX}{category}.json has {len(right)} "
                "labels; get the files that fastervlm data pope names."
            )
    return places, others, reworded


def _is_reworded(record: dict[str, Any], label: Label, where: str) -> bool:
    """Whether a question has other words than its label, which names the same object or is a part of it.

    Raises:
        UserError: the label tells its picture or its question, and these are not the ones asked about.
    """
    asked = str(record.get("text")).replace(_TYPO, "image").split("\n")[0].strip()
    told = asked if label.text is None else str(label.text).replace(_TYPO, "image").strip()
    thing = _OBJECT.fullmatch(told)
    same_thing = told in asked or (thing and re.search(rf"\b{re.escape(thing[1])}\b", asked, re.IGNORECASE))
    if not same_thing or label.image not in (None, record.get("image")):
        raise UserError(
            f"{where}: the question {asked!r} about {record.get('image')} has a label for {label.text!r} about {label.image}; "
            "get the files that fastervlm data pope names."
        )
    return told != asked


_LABELS = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_LAYOUT = Layout.of("pope", "llava_pope_test.jsonl", "val2014", "coco", LLAVA, COCO, _LABELS, released=8910)
POPE = Task(
    name="pope",
    questions=read_questions,
    score=score,
    counts_missing=True,
    score_flags=("annotation_dir", "question_file"),
    layout=_LAYOUT,
)
