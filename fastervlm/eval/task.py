"""What a benchmark is to the runner: where its questions come from, how they are asked, how its answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fastervlm.eval.score import Score


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


def keys_of(answers: Sequence[Answer]) -> list[tuple[str | int, str]]:
    """What names each answer's question in two runs of one question file."""
    return [(answer["question_id"], answer["prompt"]) for answer in answers]
