"""Benchmarks whose answers only a server or a judge can score: VQAv2, VizWiz and MM-Vet; each writes what that one asks for."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.layout import LLAVA, Layout
from fastervlm.eval.normalize import normalize
from fastervlm.eval.questions import read_jsonl, read_questions
from fastervlm.eval.task import Answer, Submission, Task, is_name
from fastervlm.reporting.files import write_text

VQAV2_TEST = "llava_vqav2_mscoco_test2015.jsonl"


def vqav2(answers: Sequence[Answer], question_file: Path, out: Path) -> tuple[int, int]:
    """An answer for each question of the whole test set, whose file lies beside the question file, normalised as EvalAI does.

    Questions without an answer get ""; those of the question file are counted.
    """
    whole = question_file.with_name(VQAV2_TEST)
    given, every = _texts(answers), _asked(whole)
    asked = {str(record["question_id"]) for record in _asked(question_file)}
    _refuse_others(given, [str(record["question_id"]) for record in every], whole)
    rows = [
        {"question_id": record["question_id"], "answer": normalize(given.get(str(record["question_id"]), ""))}
        for record in every
    ]
    write_text(out, json.dumps(rows))
    return len(asked & given.keys()), len(asked)


def vizwiz(answers: Sequence[Answer], question_file: Path, out: Path) -> tuple[int, int]:
    """An answer for the picture of every question, normalised as EvalAI does; refused if one is missing."""
    given = _texts(answers)
    asked = [(str(record["question_id"]), record["image"]) for record in _asked(question_file, "image")]
    _refuse_others(given, [name for name, _ in asked], question_file)
    missing = [name for name, _ in asked if name not in given]
    if missing:
        raise UserError(
            f"VizWiz takes complete answers only, and {len(missing)} are missing ({missing[0]} ...); finish the run."
        )
    write_text(out, json.dumps([{"image": image, "answer": normalize(given[name])} for name, image in asked]))
    return len(asked), len(asked)


def mmvet(answers: Sequence[Answer], question_file: Path, out: Path) -> tuple[int, int]:
    """Each answer as it is, under `v1_` and the question's number."""
    asked = {str(record["question_id"]) for record in _asked(question_file)}
    given = _texts(answers)
    _refuse_others(given, asked, question_file)
    write_text(out, json.dumps({f"v1_{name}": text for name, text in given.items()}, indent=2))
    return len(given), len(asked)


def names_of(question_file: Path) -> set[str]:
    """What names the questions of a file."""
    return {str(record["question_id"]) for record in _asked(question_file)}


def _whole_test(question_file: Path) -> set[str]:
    """What names the questions of VQAv2's whole test set."""
    return names_of(question_file.with_name(VQAV2_TEST))


def _texts(answers: Sequence[Answer]) -> dict[str, str]:
    """The answers by question; the last one of each counts."""
    return {str(answer["question_id"]): answer["text"] for answer in answers}


def _asked(path: Path, *more: str) -> list[dict[str, Any]]:
    """The lines of a question file; refused if one lacks its `question_id` or what else is needed."""
    records = read_jsonl(path)
    for line, record in records:
        for name in ("question_id", *more):
            if not is_name(record.get(name)):
                raise UserError(f"{path}, line {line}: {name!r} is missing; give the question file as it was released.")
    return [record for _, record in records]


def _refuse_others(given: dict[str, str], asked: Collection[str], path: Path) -> None:
    other = given.keys() - set(asked)
    if other:
        raise UserError(f"{path} has no question {min(other)!r}; use the question file that the answers are to.")


_EVALAI = "https://eval.ai/web/challenges/challenge-page"
_VQA = "https://visualqa.org/download.html"
_VQA_DEV, _VQA_TEST = "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"
VQAV2 = Task(
    "vqav2",
    read_questions,
    submission=Submission(vqav2, ".json", f"{_EVALAI}/830", _whole_test),
    layout=Layout(
        *("vqav2", _VQA_DEV, "test2015", None),
        origins={_VQA_DEV: LLAVA, "test2015": _VQA, _VQA_TEST: LLAVA},
        more=(_VQA_TEST,),
        released=107394,
    ),
)
VIZWIZ = Task(
    "vizwiz",
    read_questions,
    submission=Submission(vizwiz, ".json", f"{_EVALAI}/2185", names_of),
    layout=Layout.of(
        *("vizwiz", "llava_test.jsonl", "test", None),
        *(LLAVA, "https://vizwiz.org/tasks-and-datasets/vqa/"),
        released=8000,
    ),
)
MMVET = Task(
    "mmvet",
    read_questions,
    submission=Submission(mmvet, ".json", "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator", names_of),
    max_new_tokens=1024,
    layout=Layout.of(
        *("mm-vet", "llava-mm-vet.jsonl", "images", None), *(LLAVA, "https://github.com/yuweihao/MM-Vet"), released=218
    ),
)
