"""MME: two questions about each picture, one to be answered yes and one no, in ten perception and four cognition categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.layout import LLAVA, Layout
from fastervlm.eval.questions import read_questions
from fastervlm.eval.score import Score, Statistic
from fastervlm.eval.task import Answer, Task, only_asked
from fastervlm.reporting.files import read_file

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ASK = "Please answer yes or no."
SHORT = "Answer the question using a single word or phrase."
CATEGORIES = (*PERCEPTION, *COGNITION)
_COLUMNS = 3

# (category, picture's name without its ending, question), and whether the right answer is yes
Truth = dict[tuple[str, str, str], bool]


def reads(text: str) -> bool | None:
    """What the official tool reads in the first four characters of an answer: yes, no, or None of them."""
    start = text.lower() if text.lower() in ("yes", "no") else text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def score(answers: Sequence[Answer], release: Path, asked: Sequence[Answer] | None = None) -> Score:
    """The perception score: accuracy and accuracy+ in percent, added up over ten categories; its rows are pictures.

    Accuracy+ is the share of pictures of which both answers are right. The cognition score (of at most 800) and each
    category's are its parts. Of answers to one question the last counts; a question of the release without an answer counts as
    wrong, and categories without any are named.
    """
    every = _truth(release)
    truth = only_asked(every, None if asked is None else [key for each in asked for key in _keys(each, every, release)])
    given: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        given[_key(answer, every, release)] = answer["text"]
    pictures: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for key in sorted(truth):
        pictures.setdefault(key[:2], []).append(key)
    rows = np.zeros((len(pictures), _COLUMNS * len(CATEGORIES)))
    for row, (picture, keys) in zip(rows, pictures.items(), strict=True):
        right = [key in given and reads(given[key]) is truth[key] for key in keys]
        row[_columns(picture[0])] = 1, sum(right) / len(right), all(right)
    answered = [all(key in given for key in keys) for keys in pictures.values()]
    there = CATEGORIES if asked is None else {category for category, _ in pictures}
    without = [name for name in CATEGORIES if name in there and not any(key[0] == name for key in given)]
    notes = [f"Categories without any answer: {', '.join(without)}"] if without else []
    if unclear := sum(reads(text) is None for text in given.values()):
        notes.append(f"Answers without a plain yes or no, counted as wrong: {unclear}")
    return _score(list(pictures), rows, answered, len(truth) - len(given), notes)


def _score(
    pictures: list[tuple[str, str]], rows: np.ndarray, answered: list[bool], missing: int, notes: Sequence[str]
) -> Score:
    """The score of pictures that earned `rows` (pictures, columns of all categories)."""

    def score_of(metric: str, names: Sequence[str], **more: Any) -> Score:
        own = [i for i, picture in enumerate(pictures) if picture[0] in names]
        named = {"keys": [pictures[i] for i in own], "answered": [answered[i] for i in own]}
        return Score.of(metric, rows[own], statistic=_total(names), unit="", **named, **more)

    there = {category for category, _ in pictures}
    perception, cognition = ([name for name in names if name in there] for names in (PERCEPTION, COGNITION))
    parts = [score_of("Cognition", cognition)] if cognition else []
    parts += [score_of(name, [name]) for name in (*perception, *cognition)]
    metric = "Perception" if perception else "Cognition"
    return score_of(metric, perception or cognition, parts=parts, missing=missing, notes=notes)


def _columns(category: str) -> slice:
    """The columns of a category: pictures, right answers, pictures with both answers right."""
    start = _COLUMNS * CATEGORIES.index(category)
    return slice(start, start + _COLUMNS)


def _total(names: Sequence[str]) -> Statistic:
    """The sum over categories; the same columns for every answer file, so that two can be compared."""

    def statistic(mean: np.ndarray) -> np.ndarray:
        return sum((_category(mean[..., _columns(name)]) for name in names), np.zeros(mean.shape[:-1]))

    return statistic


def _category(mean: np.ndarray) -> np.ndarray:
    """Accuracy and accuracy+ of a category in percent, added up; 0 where a resample holds none of its pictures."""
    return 100 * np.divide(
        mean[..., 1] + mean[..., 2], mean[..., 0], out=np.zeros(mean.shape[:-1]), where=np.asarray(mean[..., 0]) > 0
    )


def _truth(release: Path) -> Truth:
    """The right answers in the text files of the release folder, one beside each picture or in questions_answers_YN."""
    found: Truth = {}
    for category in CATEGORIES:
        folder = release / category
        texts = folder / "questions_answers_YN"
        for file in sorted((texts if texts.is_dir() else folder).glob("*.txt")):
            for line in _lines(file):
                question, tab, answer = line.partition("\t")
                if not tab or answer.strip() not in ("Yes", "No"):
                    raise UserError(f"{file} is no file of MME; its lines must be a question, a tab, and Yes or No.")
                found[category, file.stem, question] = answer.strip() == "Yes"
    if not found:
        raise UserError(f"{release} is not the release folder of MME; give MME_Benchmark_release_version as --annotation-dir.")
    return found


def _lines(file: Path) -> list[str]:
    try:
        return read_file(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not in UTF-8; give the release folder of MME as it was released.") from None


def _keys(asked: Answer, truth: Truth, release: Path) -> list[tuple[str, str, str]]:
    """The questions in the release that were asked: the one, or those about a picture where only that is known."""
    if asked["prompt"]:
        return [_key(asked, truth, release)]
    return [key for key in truth if key[:2] == _picture(asked)]


def _picture(answer: Answer) -> tuple[str, str]:
    """The category and the name, without its ending, of the picture that an answer is about."""
    category, _, name = str(answer["question_id"]).rpartition("/")
    return category.split("/")[0], name.split(".")[0]


def _key(answer: Answer, truth: Truth, release: Path) -> tuple[str, str, str]:
    """The question in the release that an answer belongs to; there a few have two blanks before the request for yes or no."""
    category, stem = _picture(answer)
    asked = answer["prompt"].replace(SHORT, "").strip()
    asked = asked if ASK in asked else f"{asked} {ASK}"
    for question in (asked, asked.replace(f" {ASK}", f"  {ASK}")):
        if (category, stem, question) in truth:
            return category, stem, question
    raise UserError(f"{release} has no question {asked!r} about {answer['question_id']}; give the release folder of MME.")


_RELEASE = "MME_Benchmark_release_version"
_PAGE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"
_LAYOUT = Layout.of("MME", "llava_mme.jsonl", _RELEASE, _RELEASE, LLAVA, _PAGE, released=2374)
MME = Task(
    name="mme",
    questions=read_questions,
    score=score,
    reads_prompt=True,
    counts_missing=True,
    score_flags=("annotation_dir",),
    layout=_LAYOUT,
)
