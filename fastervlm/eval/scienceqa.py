"""ScienceQA: multiple choice from school books, with and without pictures, asked for the letter directly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import Layout
from fastervlm.eval.questions import IMAGE_TOKEN, existing_folder, inside, read_json
from fastervlm.eval.score import Score, strays_of
from fastervlm.eval.task import Answer, Question, Task, only_asked

LETTERS = "ABCDE"
SPLITS = ("test", "val", "minitest", "minival", "train", "trainval")
ASK = "Answer with the option's letter from the given choices directly."
WITH_PICTURE = f"{IMAGE_TOKEN}\n"

_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_LENIENT_STARTS = re.compile(r"\(([A-E])\)|([A-E])\)|The correct answer is \(([A-E])")
_BRACKETS = re.compile(r"\(([A-E])\)")
_CORRECT = re.compile(r"The correct answer is \(([A-E])\)")
_OPTION = re.compile(r"(?:^| )\([A-Z]\)")
_LINES = re.compile(r"^([A-Z])\. ", re.MULTILINE)


def read_questions(question_file: Path, image_folder: Path | None) -> list[Question]:
    """The questions of LLaVA's file (`id`, `image` or none, `conversations`); a question with a picture begins with <image>."""
    folder, records = existing_folder(image_folder), read_json(question_file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{question_file} is no JSON list of questions; give LLaVA's llava_test_CQM-A.json.")
    return [_question(record, place, folder, question_file) for place, record in enumerate(records, start=1)]


def _question(record: Any, place: int, folder: Path, path: Path) -> Question:
    where = f"{path}, question {place}"
    try:
        name, image, asked = record["id"], record.get("image"), record["conversations"][0]["value"]
    except (KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{where}: a question needs 'id' and 'conversations' with a first 'value'.") from None
    if not all(isinstance(part, str) for part in (name, asked, image or name)) or image == "":
        raise UserError(f"{where}: 'id', the first 'value' and 'image', if there is one, must be texts.")
    text = f"{asked.replace(IMAGE_TOKEN, '').strip()}\n{ASK}"
    if image is None:
        return Question(place, name, text, None, _options(text))
    return Question(place, name, WITH_PICTURE + text, inside(folder, image, where), _options(text))


def _options(text: str) -> tuple[str, ...]:
    """The options in a prompt, without their letters.

    They stand in one line, `Options: (A) first (B) second`, or as in LLaVA's file in lines of their own at the end: `A. first`
    and below it `B. second`.
    """
    asked = text.removesuffix(f"\n{ASK}")
    _, found, offered = asked.rpartition("Options: ")
    return (tuple(option.strip() for option in _OPTION.split(offered)[1:]) if found else ()) or _lettered(asked)


def _lettered(asked: str) -> tuple[str, ...]:
    """The options from the last line that begins with `A. ` on, as long as the letters go on; one alone is none."""
    starts = list(_LINES.finditer(asked))
    first = max((i for i, start in enumerate(starts) if start[1] == LETTERS[0]), default=len(starts))
    own: list[re.Match[str]] = []
    for start in starts[first:]:
        if start[1] == LETTERS[len(own) : len(own) + 1]:
            own.append(start)
    ends = [*(start.start() for start in own[1:]), len(asked)]
    options = tuple(asked[start.end() : end].strip() for start, end in zip(own, ends, strict=False))
    return options if len(options) > 1 else ()


def _prompt(question: Question) -> str:
    """The question without the mark of its picture, which the template places."""
    return question.text.removeprefix(WITH_PICTURE)


def strict(text: str) -> str | None:
    """The letter that LLaVA's parser reads.

    It stands alone, before ". " at the beginning, or in the only "The answer is X" with something behind it.
    """
    if len(text) == 1 and text in LETTERS:
        return text
    if text[:1] and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    sentences = _SENTENCE.findall(text)
    return sentences[0] if len(sentences) == 1 else None


def lenient(text: str) -> str | None:
    """The letter that Simignore's parser reads.

    Beside LLaVA's forms: "(X)", "X)" or "The correct answer is (X" at the beginning, then the only bracketed letter, then
    the first "The correct answer is (X)".
    """
    start = _LENIENT_STARTS.match(text)
    if start:
        return start[start.lastindex or 0]
    letter = strict(text)
    if letter is not None:
        return letter
    brackets = _BRACKETS.findall(text)
    if len(brackets) == 1:
        return brackets[0]
    correct = _CORRECT.search(text)
    return correct[1] if correct else None


def score(
    answers: Sequence[Answer], annotation_file: Path, split: str = SPLITS[0], asked: Sequence[Answer] | None = None
) -> Score:
    """Accuracy over a whole split, where a missing answer is wrong; of equal ids the last answer counts.

    Answers to other splits are left out, as long as some are to this one.
    IMG-Accuracy is over the answers whose prompt holds <image>. Both once more with Simignore's parser.
    """
    whole, others = _problems(annotation_file, split)
    problems = only_asked(whole, None if asked is None else [str(each["question_id"]) for each in asked])
    every = {answer["question_id"]: answer for answer in answers}
    given = {name: answer for name, answer in every.items() if name in problems}
    refusal = f"Question {{}} is not in the {split} split of {annotation_file}; score that of the questions."
    forgiven = strays_of(every, problems, others, annotation_file, refusal)
    pictured = [IMAGE_TOKEN in given[name]["prompt"] if name in given else False for name in problems]
    by_llava, by_simignore = (
        [_value(problem, given.get(name), parser) for name, problem in problems.items()] for parser in (strict, lenient)
    )

    def with_picture(metric: str, values: list[float]) -> list[Score]:
        shown = [value for value, is_shown in zip(values, pictured, strict=True) if is_shown]
        return [Score.of(metric, shown)] if shown else []

    parts = [
        *with_picture("IMG-Accuracy", by_llava),
        Score.of("Accuracy, lenient parser", by_simignore),
        *with_picture("IMG-Accuracy, lenient parser", by_simignore),
    ]
    left_out = len(every) - len(given)
    elsewhere = sum(name in others for name in every) - len(given)
    return Score.of(
        "Accuracy",
        by_llava,
        parts,
        len(problems) - len(given),
        keys=list(problems),
        answered=[name in given for name in problems],
        notes=[f"Answers to other splits, left out: {elsewhere}"] if elsewhere else (),
        left_out=left_out,
        forgiven=forgiven,
    )


def _value(problem: dict[str, Any], answer: Answer | None, parser: Callable[[str], str | None]) -> float:
    letter = parser(answer["text"]) if answer else None
    offered = LETTERS[: len(problem["choices"])]
    return float(letter is not None and letter in offered and offered.index(letter) == problem["answer"])


def _problems(path: Path, split: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The problems of a split by id, and the ids of all splits; pid_splits.json lies beside problems.json."""
    splits, problems = read_json(path.with_name("pid_splits.json")), read_json(path)
    try:
        asked = {name: problems[name] for name in splits[split]}
        if all(isinstance(problem["choices"], list) and type(problem["answer"]) is int for problem in asked.values()):
            return asked, set(problems)
    except (KeyError, TypeError):
        pass
    raise UserError(
        f"{path} is no problems.json of ScienceQA: choices and answer of each id that pid_splits.json beside it names."
    )


_PAGE, _PID = "https://github.com/lupantech/ScienceQA", "pid_splits.json"
SCIENCEQA = Task(
    name="sqa",
    questions=read_questions,
    score=score,
    prompt=_prompt,
    selector=lambda question: " ".join(question.options) or _prompt(question),
    max_new_tokens=1024,
    counts_missing=True,
    score_flags=("base_dir",),
    splits=SPLITS,
    layout=Layout(
        *("sqa", "llava_test_CQM-A.json", "images/test", "problems.json"),
        origins={"llava_test_CQM-A.json": _PAGE, "images/test": _PAGE, "problems.json": _PAGE, _PID: _PAGE},
        more=(_PID,),
        released=4241,
    ),
)
