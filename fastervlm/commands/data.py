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
    from fastervlm.eval.data import ROOT, inspect, layout_of
    from fastervlm.reporting.tables import print_table

    benchmark = get_task(task)
    place = folder or ROOT / layout_of(benchmark).folder
    found = list(inspect(benchmark, place))
    print_table(["file", "found"], [[each.name, each.state] for each in found], title=f"{task} in {place}")
    missing = [each for each in found if not each.good]
    if missing:
        print(f"{task} is not complete in {place}; put there under these names:")
        print("\n".join(f"  {each.name}   from {each.origin}" for each in missing))
        raise typer.Exit(1)
    print(f"All that these questions need is there; fastervlm eval {task} --data {place} answers them.")
