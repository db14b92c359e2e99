"""What a benchmark is to the runner: where its questions come from, how they are asked, how its answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypedDict, TypeGuard, TypeVar

from encoders.errors import UserError
from fastervlm.eval.layout import Layout
from fastervlm.eval.score import Score, strays_of

Name = TypeVar("Name")
Right = TypeVar("Right")


def is_name(value: object) -> TypeGuard[str | int]:
    """Whether it can be the `question_id` of a question: a text or a whole number, and not true or false."""
    return isinstance(value, str | int) and not isinstance(value, bool)


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
    recorded as the answer's prompt. `options` are what a multiple-choice question offers, without letters, and `record` are
    further fields of its line in the answers file. `more` are the pictures behind `image`, where it shows several, and `kind`
    is what kind of question it is, where the file says so.
    """

    line: int
    question_id: str | int
    text: str
    image: Path | StoredPicture | None
    options: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict, compare=False)
    more: tuple[Path | StoredPicture, ...] = ()
    kind: str | None = field(default=None, compare=False)

    @property
    def pictures(self) -> tuple[Path | StoredPicture, ...]:
        """All that it shows, in their order."""
        return () if self.image is None else (self.image, *self.more)

    def about(self, picture: Path | StoredPicture) -> Question:
        """The same about one of its pictures alone."""
        return replace(self, image=picture, more=())


class StoredPicture(Protocol):
    """A picture that is no file of its own; hashable, and its text says where it is."""

    def open(self) -> BinaryIO:
        """The picture's file; a `ValueError` if there is none."""
        ...


@dataclass(frozen=True)
class Submission:
    """What a benchmark's server or judge takes.

    `write(answers, question_file, out)` writes it and gives how many of the questions have an answer, and how many there are;
    `suffix` is that of its file, `address` where it goes, and `names(question_file)` what names its questions.
    """

    write: Callable[[Sequence[Answer], Path, Path], tuple[int, int]]
    suffix: str
    address: str
    names: Callable[[Path], Collection[Any]]

    def known(self, answers: Sequence[Answer], question_file: Path) -> tuple[list[Answer], tuple[str, ...]]:
        """The answers to its questions, and what is forgiven of the others.

        Raises:
            UserError: there is no answer to any of its questions.
        """
        names = set(map(str, self.names(question_file)))
        given = [str(answer["question_id"]) for answer in answers]
        refusal = f"{question_file} has no question {{}}; use the question file that the answers are to."
        forgiven = strays_of(given, names, (), question_file, refusal)
        return [answer for answer, name in zip(answers, given, strict=True) if name in names], forgiven


def _not_public(answers: Sequence[Answer], annotations: Path) -> Score:
    raise UserError("The right answers of this benchmark are not public; write the file its server takes by --submission.")


@dataclass(frozen=True)
class Task:
    """A benchmark.

    `questions(question_file, image_folder)` reads and checks; `prompt` is the text that goes into the template;
    `post_process` turns what the model wrote into the recorded answer; `score(answers, annotations)` must raise a `UserError`
    for an answer without an annotation; by default a server holds the right answers. `score_flags` are what
    `fastervlm score` asks for, the place of the annotations first; with `question_file` behind it `score` is given that too,
    and with `splits`, of which the first is the usual one, `split`. `submission` is what the server takes. `selector` is the
    text by which a method that compares pictures with text chooses; `max_new_tokens` the longest answer unless told; with
    `answers_inside` the question file holds the right answers and is its own annotation file; with `reads_prompt` an answer
    belongs to its question by its prompt too. With `counts_missing` questions
    without an answer count, and `score` is given `asked` where not all were asked. `layout` says how its folder is laid out, by
    which `fastervlm data` and `eval --data` go.
    """

    name: str
    questions: Callable[[Path, Path | None], list[Question]]
    score: Callable[..., Score] = _not_public
    prompt: Callable[[Question], str] = lambda question: question.text
    post_process: Callable[[str], str] = str.strip
    selector: Callable[[Question], str] = lambda question: " ".join(question.options) or question.text
    max_new_tokens: int = 128
    answers_inside: bool = False
    reads_prompt: bool = False
    counts_missing: bool = False
    submission: Submission | None = None
    score_flags: tuple[str, ...] = ("annotation_file",)
    splits: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def is_open(self) -> bool:
        """Whether the right answers are public."""
        return self.score is not _not_public

    def annotations(self, question_file: Path | None, annotation_file: Path | None) -> Path | None:
        """The file with the right answers, as given or the question file where it holds them."""
        return annotation_file or (question_file if self.answers_inside else None)

    def scored(
        self,
        answers: Sequence[Answer],
        annotations: Path,
        question_file: Path | None = None,
        split: str | None = None,
        asked: Sequence[Answer] | None = None,
    ) -> Score:
        """The score of `answers`, with what else the benchmark's scorer asks for.

        `asked` are the questions of a run that asked only the first ones, as answers; the others then do not count.
        """
        more: dict[str, Any] = {"question_file": question_file} if "question_file" in self.score_flags[1:] else {}
        if asked is not None and self.counts_missing:
            more["asked"] = asked
        if split is not None and split not in self.splits:
            known = f"choose one of {', '.join(self.splits)}" if self.splits else "leave --split out"
            raise UserError(f"{self.name} has no split {split!r}; {known}.")
        score = self.score(answers, annotations, **more, **({} if split is None else {"split": split}))
        return score if asked is None else replace(score, first=len(asked))


def keys_of(answers: Sequence[Answer]) -> list[tuple[str | int, str]]:
    """What names each answer's question in two runs of one question file."""
    return [(answer["question_id"], answer["prompt"]) for answer in answers]


def only_asked(right: Mapping[Name, Right], names: Iterable[Name] | None) -> dict[Name, Right]:
    """The right answers to the questions that were asked, to all if nobody says which those are."""
    wanted = right.keys() if names is None else set(names)
    return {name: each for name, each in right.items() if name in wanted}
