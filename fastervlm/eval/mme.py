"""MME: two questions about each picture, one to be answered yes and one no, in ten perception and four cognition categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.questions import read_questions
from fastervlm.eval.score import Score, Statistic
from fastervlm.eval.task import Answer, Task

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ASK = "Please answer yes or no."
SHORT = "Answer the question using a single word or phrase."
_COLUMNS = 3  # pictures, right answers, pictures with both answers right

# (category, picture's name without its ending, question), and whether the right answer is yes
Truth = dict[tuple[str, str, str], bool]


def reads(text: str) -> bool | None:
    """What the official tool reads in the first four characters of an answer: yes, no, or None of them."""
    start = text.lower() if text.lower() in ("yes", "no") else text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def score(answers: Sequence[Answer], release: Path) -> Score:
    """The perception score: accuracy and accuracy+ in percent, added up over ten categories; its rows are pictures.

    Accuracy+ is the share of pictures of which both answers are right. The cognition score (of at most 800) and each
    category's are its parts. Of answers to one question the last counts; a question without an answer counts as wrong.
    """
    truth = _truth(release)
    given: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        given[_key(answer, truth, release)] = answer["text"]
    categories = [name for name in (*PERCEPTION, *COGNITION) if any(key[0] == name for key in given)]
    pictures = sorted({key[:2] for key in truth if key[0] in categories})
    right = {key: key in given and reads(given[key]) is truth[key] for key in truth}
    both = {picture: [right[key] for key in truth if key[:2] == picture] for picture in pictures}
    return _score(categories, both, missing=sum(key[0] in categories for key in truth) - len(given))


def _score(categories: list[str], both: dict[tuple[str, str], list[bool]], missing: int) -> Score:
    rows = np.zeros((len(both), _COLUMNS * len(categories)))
    for row, ((category, _), right) in zip(rows, both.items(), strict=True):
        start = _COLUMNS * categories.index(category)
        row[start : start + _COLUMNS] = 1, sum(right) / len(right), all(right)

    def total(names: Sequence[str]) -> Statistic:
        starts = [_COLUMNS * categories.index(name) for name in names]

        def statistic(mean: np.ndarray) -> np.ndarray:
            return sum((_category(mean[..., start : start + _COLUMNS]) for start in starts), np.zeros(mean.shape[:-1]))

        return statistic

    def score_of(metric: str, names: Sequence[str], parts: Sequence[Score] = (), missing: int = 0) -> Score:
        own = rows[[category in names for category, _ in both]]
        keys = [picture for picture in both if picture[0] in names]
        return Score.of(metric, own, parts, missing, keys=keys, statistic=total(names), unit="")

    perception = [name for name in categories if name in PERCEPTION]
    cognition = [name for name in categories if name in COGNITION]
    parts = [*([score_of("Cognition", cognition)] if cognition else []), *(score_of(name, [name]) for name in categories)]
    return score_of("Perception" if perception else "Cognition", perception or cognition, parts, missing)


def _category(mean: np.ndarray) -> np.ndarray:
    """Accuracy and accuracy+ of a category in percent, added up; 0 where a resample holds none of its pictures."""
    return 100 * np.divide(
        mean[..., 1] + mean[..., 2], mean[..., 0], out=np.zeros(mean.shape[:-1]), where=np.asarray(mean[..., 0]) > 0
    )


def _truth(release: Path) -> Truth:
    """The right answers in the text files of the release folder, one beside each picture or in questions_answers_YN."""
    found: Truth = {}
    for category in (*PERCEPTION, *COGNITION):
        folder = release / category
        texts = folder / "questions_answers_YN"
        for file in sorted((texts if texts.is_dir() else folder).glob("*.txt")):
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                question, tab, answer = line.partition("\t")
                if not tab or answer.strip() not in ("Yes", "No"):
                    raise UserError(f"{file} is no file of MME; its lines must be a question, a tab, and Yes or No.")
                found[category, file.stem, question] = answer.strip() == "Yes"
    if not found:
        raise UserError(f"{release} is not the release folder of MME; give MME_Benchmark_release_version as --annotation-dir.")
    return found


def _key(answer: Answer, truth: Truth, release: Path) -> tuple[str, str, str]:
    """The question in the release that an answer belongs to; there a few have two blanks before the request for yes or no."""
    category, _, name = str(answer["question_id"]).rpartition("/")
    category, stem = category.split("/")[0], name.split(".")[0]
    asked = answer["prompt"].replace(SHORT, "").strip()
    asked = asked if ASK in asked else f"{asked} {ASK}"
    for question in (asked, asked.replace(f" {ASK}", f"  {ASK}")):
        if (category, stem, question) in truth:
            return category, stem, question
    raise UserError(f"{release} has no question {asked!r} about {answer['question_id']}; give the release folder of MME.")


MME = Task(name="mme", questions=read_questions, score=score, score_flags=("annotation_dir",))
