"""`fastervlm compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastervlm.commands.common import (
    OWN_TASK,
    AnyresMode,
    AspectRatio,
    BatchSize,
    Budget,
    ConvMode,
    DataFolder,
    Device,
    Dtype,
    ExifTurn,
    Limit,
    MaxNewTokens,
    MethodNames,
    Newline,
    OptionalAnnotationFile,
    OptionalImageFolder,
    OptionalModel,
    OptionalQuestionFile,
    TaskOption,
    model_and_files,
    names_of,
    pictures_of,
    report_failures,
    resumable,
)
from fastervlm.commands.numbers import WHOLE, kept_of, whole_numbers

if TYPE_CHECKING:
    from fastervlm.eval.table import Comparison


OutDir = Annotated[
    Path | None, typer.Option(help="Where answers, table and plot go; compare/MODEL beside the question file if left out.")
]
Budgets = Annotated[str, typer.Option(help="Budgets, separated by commas: counts, fractions, at-most-256.")]
Layers = Annotated[
    str | None, typer.Option(help="Layers at which methods such as fastv prune, separated by commas; its own if left out.")
]
Risk = Annotated[bool, typer.Option("--risk", help="Write risk.html too: what the first method breaks, by kind of question.")]


def compare(
    *,
    model: OptionalModel = None,
    data: DataFolder = None,
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    out_dir: OutDir = None,
    task: TaskOption = OWN_TASK,
    visual_token_num: Budgets = "576,288,144,58,29",
    methods: MethodNames = None,
    layers: Layers = None,
    seeds: Annotated[int, typer.Option(help="Runs of a random method.", **WHOLE)] = 3,
    blind: Annotated[bool, typer.Option("--blind", help="Add the floor: every picture replaced by grey.")] = False,
    risk: Risk = False,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    max_new_tokens: MaxNewTokens = None,
    image_aspect_ratio: AspectRatio = None,
    exif: ExifTurn = "ignore",
    anyres: AnyresMode = "native",
    newline: Newline = "kept",
    budget: Budget = "crop",
) -> None:
    """Table and plot of accuracy and time to first token over visual tokens and methods.

    The data are a benchmark's folder, or its files one by one. Without a model and data it compares the tiny model on the mini
    benchmark; without data a tiny model.
    """
    from fastervlm.analysis.risk import write_risk
    from fastervlm.eval import get_task
    from fastervlm.eval.compare import compare as run
    from fastervlm.eval.subject import Subject
    from fastervlm.families.llava_next.settings import Anyres

    benchmark = get_task(task)
    model, files = model_and_files(benchmark, model, data, question_file, image_folder, annotation_file)
    subject = Subject(model, dtype, device, Anyres(anyres, newline, budget))
    folder = out_dir or files["question_file"].parent / "compare" / subject.name
    asked = {"batch_size": batch_size, "limit": limit, "conv_mode": conv_mode, "max_new_tokens": max_new_tokens}
    settings = pictures_of(benchmark, folder, files, **asked, image_aspect_ratio=image_aspect_ratio, exif=exif)
    pruned_at = [] if layers is None else whole_numbers("layers", layers, least=0)
    choice = {
        "budgets": kept_of(visual_token_num),
        "methods": None if methods is None else names_of(methods),
        "seeds": seeds,
        "blind": blind,
    }
    with resumable():
        comparison = run(subject, settings, out_dir=folder, layers=pruned_at, **choice)
        if risk:
            write_risk(folder / "risk.html", subject, comparison)
            print(f"What breaks: {folder}/risk.html")
    show(comparison, folder)


def show(comparison: Comparison, folder: Path) -> None:
    """Print the tables and where the files are; fail if a question did."""
    from fastervlm.reporting.tables import print_table

    print_table(*comparison.table(), keys=2)
    for name, table in comparison.layer_tables().items():
        print_table(*table, title=f"{name}, by layer")
    for name, table in comparison.kind_tables().items():
        print_table(*table, title=name, keys=2)
    if comparison.by_kind is not None:
        print(comparison.by_kind.note.rstrip())
    for doubt in comparison.doubts:
        print(f"Warning: {doubt}", file=sys.stderr)
    if first := comparison.whole.score.first:
        print(f"Of the first {first} questions only (--limit)")
    print(f"Table, numbers and plot: {folder}/compare.md, compare.json, compare.png")
    report_failures(comparison.failed, comparison.failures)
