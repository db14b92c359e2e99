"""`fastervlm report` and `fastervlm reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import Device, report_failures, resumable


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the runs are; folders inside are searched.")],
    *,
    out_dir: Annotated[Path | None, typer.Option(help="Where the table goes; DIR if left out.")] = None,
) -> None:
    """One table of many runs: methods and budgets against benchmarks, as Markdown, JSON and PNG."""
    from fastervlm.eval.answers import writable_folder
    from fastervlm.eval.overview import overviews, write
    from fastervlm.reporting.tables import print_table

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the one that holds the answers of your runs.")
    found = overviews(folder)
    place = out_dir or folder
    writable_folder(place)
    write(found, place)
    for overview in found:
        headers, rows = overview.table()
        print_table(headers, rows, title=overview.model, keys=len(headers) - len(overview.tasks) - 2)
        for doubt in overview.doubts:
            print(f"fastervlm: {doubt}", file=sys.stderr)
    print(f"Table and numbers: {place}/report.md, report.json, and a plot where there is something to draw, report.png")


def reproduce(
    protocol: Annotated[Path, typer.Argument(metavar="FILE", help="The *.protocol.json beside the answers of a run.")],
    *,
    answers_file: Annotated[
        Path | None, typer.Option(help="Where the new answers go; beside the first ones if left out.")
    ] = None,
    device: Device = None,
) -> None:
    """Run again what a protocol describes and compare answers and score.

    The exit code is 1 if they or the annotations differ, or if questions failed.
    """
    from fastervlm.eval.reproduce import reproduce as run

    if not protocol.is_file():
        raise UserError(f"{protocol} is no file; give the *.protocol.json beside the answers of a run.")
    with resumable():
        found = run(protocol, answers_file, device=device)
    print("\n".join(found.lines()))
    report_failures(len(found.failures), found.failures)
    if not found.agrees:
        raise typer.Exit(1)
