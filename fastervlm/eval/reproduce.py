"""A finished run done again from its protocol, and compared with it answer by answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.anyres import Anyres
from fastervlm.eval import get_task
from fastervlm.eval.answers import read_answers, read_protocol
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject, hash_files
from fastervlm.methods import get_method

SUFFIX = ".protocol.json"
_NEEDED = (
    "task",
    "model_path",
    "weights_sha256",
    "question_file",
    "question_file_sha256",
    "max_new_tokens",
    "batch_size",
    "dtype",
)


@dataclass(frozen=True)
class Reproduction:
    """How a repeated run agrees with the first: `equal` of `answers` are the same to the letter.

    `score` and `first_score` are in the unit of the benchmark, None without annotations; `versions` are the packages that
    differ, as (then, now).
    """

    answers_file: Path
    answers: int
    equal: int
    first_score: float | None
    score: float | None
    versions: dict[str, tuple[str, str]]

    def lines(self) -> list[str]:
        """The comparison in words."""
        scores = [] if self.score is None else [f"Score: {self.first_score:.2f} then, {self.score:.2f} now"]
        versions = [f"{name} was {then} then and is {now} now" for name, (then, now) in self.versions.items()]
        return [
            f"Answers equal to the letter: {self.equal} of {self.answers}",
            *scores,
            *versions,
            f"Answers: {self.answers_file}",
        ]


def reproduce(protocol: Path, out: Path | None = None, *, device: str | None = None) -> Reproduction:
    """Run again what a protocol describes; the answers go to `out`, beside the first ones if left out.

    Raises:
        UserError: the file is no protocol, or what it names (model, questions, method) is not there or not the same any more.
    """
    first = read_protocol(protocol)
    missing = [key for key in _NEEDED if key not in first]
    if missing or not protocol.name.endswith(SUFFIX):
        raise UserError(f"{protocol} is not the protocol of a run (*{SUFFIX}) or lacks {', '.join(missing)}; run it anew.")
    answers = protocol.with_name(protocol.name.removesuffix(SUFFIX) + ".jsonl")
    before = {answer["answer_id"]: answer["text"] for answer in read_answers(answers)}
    subject = _subject(first, device)
    settings = _settings(first, out or answers.with_name(f"{answers.stem}.reproduced.jsonl"))
    again, score = evaluate(subject, settings)
    after = {answer["answer_id"]: answer["text"] for answer in read_answers(settings.answers_file)}
    found = first.get("score")
    return Reproduction(
        settings.answers_file,
        len(before),
        sum(after.get(name) == text for name, text in before.items()),
        found["value"] if found else None,
        score.value if score else None,
        _changed(first.get("versions", {}), again["versions"]),
    )


def _changed(then: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def _subject(first: dict[str, Any], device: str | None) -> Subject:
    layout = first.get("anyres")
    subject = Subject(first["model_path"], first["dtype"], device, Anyres(**layout) if layout else Anyres(), first["quantize"])
    if subject.weights_sha256 != first["weights_sha256"]:
        raise UserError(f"The weights of {first['model_path']} are not those of the run; give it the same checkpoint.")
    return subject


def _settings(first: dict[str, Any], out: Path) -> Settings:
    questions = Path(first["question_file"])
    if not questions.is_file() or hash_files([questions]) != first["question_file_sha256"]:
        raise UserError(f"The question file {questions} is not there or not that of the run; run from the same folder.")
    if first["budget"] is not None and first.get("method_settings") is None:
        raise UserError(f"The method {first['method']} is none of fastervlm's own; repeat the run where it is defined.")
    chosen = first["method_settings"] or {"name": "cls", "settings": {}}
    images, right = first.get("image_folder"), first.get("annotation_file")
    return Settings(
        task=get_task(first["task"]),
        question_file=questions,
        image_folder=Path(images) if images else None,
        answers_file=out,
        annotation_file=Path(right) if right else None,
        keep=first["budget"],
        method=get_method(chosen["name"], **chosen["settings"]),
        batch_size=first["batch_size"],
        limit=first["limit"],
        conv_mode=first["conv_mode"],
        temperature=first["temperature"],
        max_new_tokens=first["max_new_tokens"],
        image_aspect_ratio=first["image_aspect_ratio"],
        seed=first["seed"] or 0,
        blind=first["blind"],
    )
