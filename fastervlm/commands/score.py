"""`fastervlm score`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import TaskName, refusal_of, write_submission

if TYPE_CHECKING:
    from fastervlm.eval import Answer, Score, Task

_PROBLEMS = "problems.json"


def score(
    task: TaskName,
    *,
    result_file: Annotated[Path, typer.Option(help="The answers (.jsonl).")],
    annotation_file: Annotated[
        Path | None, typer.Option(help="The right answers, for textvqa, aokvqa, ocrvqa, mmbench.")
    ] = None,
    annotation_dir: Annotated[Path | None, typer.Option(help="Folder of the right answers, for pope and mme.")] = None,
    base_dir: Annotated[Path | None, typer.Option(help="Folder of problems.json and pid_splits.json, for sqa.")] = None,
    question_file: Annotated[
        Path | None, typer.Option(help="The questions, for pope and submissions; gqa's balanced questions (JSON).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of sqa that was asked; test if left out.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the score to this file as well.")] = None,
    against: Annotated[Path | None, typer.Option(help="Other answers (.jsonl) to the same questions, to compare with.")] = None,
    submission: Annotated[Path | None, typer.Option(help="Write the file that the benchmark's server takes here.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what is otherwise passed over with a warning, such as stray answers.")
    ] = False,
) -> None:
    """Score answers that are on disk, compare them with other answers, or write what the benchmark's server takes."""
    from fastervlm.eval import get_task
    from fastervlm.eval.answers import read_other_answers, writable_file
    from fastervlm.eval.score import difference
    from fastervlm.reporting.files import write_json

    benchmark = get_task(task)
    for option, path in {"--json": json, "--submission": submission}.items():
        writable_file(option, path)
    others = {"annotation_file": annotation_file, "annotation_dir": annotation_dir, "base_dir": base_dir}
    if submission:
        _refuse_given({**others, "split": split, "json": json, "against": against})
        _submit(benchmark, result_file, question_file, submission, strict)
        return
    right = _right_answers(benchmark, {**others, "question_file": question_file})

    def scored(path: Path) -> Score:
        answers, forgiven = read_other_answers(path, benchmark.reads_prompt)
        found = benchmark.scored(answers, right, question_file, split, _asked(path, answers))
        forgiven += found.forgiven
        if strict and forgiven:
            raise UserError(refusal_of(forgiven))
        return replace(found, forgiven=forgiven)

    result = scored(result_file)
    lines, summary = result.lines(), result.summary()
    if against:
        change = difference(result, scored(against))
        lines += change.lines()
        summary["against"] = {"answers": str(against), **change.summary()}
    print("\n".join(lines))
    if json:
        write_json(json, summary)


def _right_answers(task: Task, given: dict[str, Path | None]) -> Path:
    """Where the right answers are; refused if the options are not those of the benchmark."""
    found = {name: path for name, path in given.items() if path is not None}
    if task.is_open and found.keys() != set(task.score_flags):
        options = " ".join(f"--{name.replace('_', '-')}" for name in (*task.score_flags, "result_file"))
        raise UserError(f"{task.name} is scored with {options}; give these and no other ones of this kind.")
    first = found.get(task.score_flags[0], Path())
    return first / _PROBLEMS if task.score_flags == ("base_dir",) else first


def _asked(path: Path, answers: list[Answer]) -> list[Answer] | None:
    """What a run with --limit asked; all, and that is said, if the answers are not those of the protocol beside them."""
    from fastervlm.eval.answers import asked_by_its_run

    try:
        return asked_by_its_run(path, answers)
    except UserError as error:
        print(f"fastervlm: {error} They are scored as answers to the whole benchmark.", file=sys.stderr)
        return None


def _refuse_given(options: dict[str, object]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"--submission writes a file and scores nothing; leave {' and '.join(given)} out.")


def _submit(task: Task, answers: Path, question_file: Path | None, out: Path, strict: bool) -> None:
    if task.submission is None:
        raise UserError(f"The right answers of {task.name} are public, nothing is submitted; leave --submission out.")
    if question_file is None or out.suffix != task.submission.suffix:
        raise UserError(f"{task.name} needs --question-file, and --submission must end in {task.submission.suffix}.")
    write_submission(task.submission, answers, question_file, out, strict)
