"""`fastervlm data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastervlm.commands.common import TaskName


def data(
    task: TaskName,
    *,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="The benchmark's folder; playground/data/eval/TASK if left out.")
    ] = None,
) -> None:
    """Say which files a benchmark needs and where they come from, and check what is there."""
    from fastervlm.eval import get_task
    from fastervlm.eval.layout import LAYOUTS, ROOT, inspect
    from fastervlm.report import print_table

    benchmark = get_task(task)
    place = folder or ROOT / LAYOUTS[task].folder
    found = list(inspect(benchmark, place))
    rows = [[each.name, each.state if each.good else f"[red]{each.state}[/red]", each.origin] for each in found]
    print_table(["file", "found", "from"], rows, title=f"{task} in {place}")
    if not all(each.good for each in found):
        print(f"{task} is not complete in {place}; put there what is missing, under these names.")
        raise typer.Exit(1)
    print(f"Complete. fastervlm eval {task} --data {place} answers it.")
