"""`fastervlm score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import AnnotationFile, TaskName


def score(
    task: TaskName,
    *,
    annotation_file: AnnotationFile,
    result_file: Annotated[Path, typer.Option(help="The answers (.jsonl).")],
    json: Annotated[Path | None, typer.Option(help="Write the score to this file as well.")] = None,
) -> None:
    """Score answers that are on disk."""
    from fastervlm.eval import get_task
    from fastervlm.eval.answers import read_answers, writable_folder
    from fastervlm.report import write_json

    if json:
        if json.is_dir():
            raise UserError(f"--json {json} is a folder; give a .json file.")
        writable_folder(json.parent)
    result = get_task(task).score(read_answers(result_file), annotation_file)
    print("\n".join(result.lines()))
    if json:
        write_json(json, result.summary())
