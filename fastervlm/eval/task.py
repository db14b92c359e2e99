"""What a benchmark is to the runner: where its questions come from, how they are asked, how its answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from encoders.errors import UserError

RESAMPLES = 2000


class Answer(TypedDict):
    """One line of an answers file, with the field names of the LLaVA scripts."""

    question_id: str | int
    prompt: str
    text: str
    answer_id: str
    model_id: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One question.

    `line` is its line in the question file, or its place in it, from 1, and names it (`question_id` may repeat). `text` is
    recorded as the answer's prompt. `options` are what a multiple-choice question offers, without letters.
    """

    line: int
    question_id: str | int
    text: str
    image: Path | None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A mean over questions in percent, with a 95 % bootstrap confidence interval from `low` to `high`.

    `parts` are further numbers of the same answers, such as that of the questions with a picture; `missing` of the
    questions have no answer and count as wrong.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    values: tuple[float, ...] = field(repr=False)
    parts: tuple[Score, ...] = ()
    missing: int = 0

    @classmethod
    def of(cls, metric: str, values: Sequence[float], parts: Sequence[Score] = (), missing: int = 0) -> Score:
        """The score of questions that earned `values`, each from 0 to 1."""
        if not values:
            raise UserError("There is no answer to score; the answers file is empty.")
        low, high = confidence_interval(values)
        mean = 100.0 * sum(values) / len(values)
        return cls(metric, mean, 100 * low, 100 * high, len(values), tuple(values), tuple(parts), missing)

    def lines(self) -> list[str]:
        """The score as the reference prints it, a line with the interval, and what else there is to say."""
        interval = f"95 % confidence interval: {self.low:.2f} to {self.high:.2f}"
        parts = [f"{part.metric}: {part.value:.2f}% of {part.samples}" for part in self.parts]
        missing = [f"Without an answer, counted as wrong: {self.missing}"] if self.missing else []
        return [f"Samples: {self.samples}", f"{self.metric}: {self.value:.2f}%", interval, *parts, *missing]

    def summary(self) -> dict[str, Any]:
        """The score for a JSON file."""
        same = {"metric": self.metric, "value": self.value, "ci95": [self.low, self.high], "samples": self.samples}
        more = {"parts": [part.summary() for part in self.parts], "missing": self.missing}
        return same | {key: value for key, value in more.items() if value}


@dataclass(frozen=True)
class Task:
    """A benchmark.

    `questions(question_file, image_folder)` reads and checks; `prompt` is the text that goes into the template;
    `post_process` turns what the model wrote into the recorded answer; `score(answers, annotation_file)` must raise a
    `UserError` for an answer without an annotation. `selector` is the text by which a method that compares pictures with
    text chooses; `max_new_tokens` the longest answer unless told; with `answers_inside` the question file holds the right
    answers and is its own annotation file.
    """

    name: str
    questions: Callable[[Path, Path], list[Question]]
    score: Callable[[Sequence[Answer], Path], Score]
    prompt: Callable[[Question], str] = lambda question: question.text
    post_process: Callable[[str], str] = str.strip
    selector: Callable[[Question], str] = lambda question: " ".join(question.options) or question.text
    max_new_tokens: int = 128
    answers_inside: bool = False

    def annotations(self, question_file: Path | None, annotation_file: Path | None) -> Path | None:
        """The file with the right answers, as given or the question file where it holds them."""
        return annotation_file or (question_file if self.answers_inside else None)


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the mean: 2.5th and 97.5th percentile of resampled means, always the same for the same values."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [data[rng.integers(0, len(data), len(data))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
