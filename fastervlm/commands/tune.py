"""`fastervlm tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoders.errors import UserError
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
from fastervlm.commands.names import METHODS, list_completer, listed
from fastervlm.commands.numbers import DECIMAL, budgets_of, whole

if TYPE_CHECKING:
    from fastervlm.eval.task import Task
    from fastervlm.tune.report import Tuned

TRIED = tuple(name for name in METHODS if name not in ("random", "fastv", "simignore"))  # tune refuses the others

AtMost = Annotated[float | None, typer.Option(help="How much may be lost, in points of accuracy, such as 1.0.", **DECIMAL)]
Confidence = Annotated[float, typer.Option(help="How sure that has to be.", **DECIMAL)]
FirstToken = Annotated[
    float | None, typer.Option(help="How many seconds the first token of a batch may take, such as 0.5.", **DECIMAL)
]
OwnQuestions = Annotated[
    Path | None,
    typer.Option(help="Your own questions, one JSON object a line with image, question and answer; pictures lie beside it."),
]
OutDir = Annotated[
    Path | None, typer.Option(help="Where answers, table and plot go; tune/MODEL beside the questions if left out.")
]
Budgets = Annotated[str, typer.Option(help="Numbers of tokens to try, counts or fractions, separated by commas.")]
Methods = Annotated[
    str | None,
    typer.Option(
        help=f"Methods to try, separated by commas, each a METHOD or METHOD:SCORE: {listed(TRIED)}. The default of the kind of "
        "model if left out.",
        autocompletion=list_completer(TRIED),
    ),
]
Seed = Annotated[int, typer.Option(help="By which pictures are drawn for the search and for the trial.", **whole(0))]
PlanShape = Annotated[
    str | None,
    typer.Option(help="A shape of fastervlm plan, whose time to the first token is told beside the measured one."),
]
PlanDevice = Annotated[
    str | None, typer.Option(help="The device of that plan: h200, h100, a100, l4 or rtx4090; h100 if left out.")
]


def tune(
    *,
    model: OptionalModel = None,
    at_most: AtMost = None,
    confidence: Confidence = 0.95,
    ttft: FirstToken = None,
    data: DataFolder = None,
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    qa_file: OwnQuestions = None,
    out_dir: OutDir = None,
    task: TaskOption = OWN_TASK,
    visual_token_num: Budgets = "0.5,0.25,0.1,0.05,0.02",
    methods: Methods = None,
    seed: Seed = 0,
    plan_shape: PlanShape = None,
    plan_device: PlanDevice = None,
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
    """Find the method and the number of visual tokens that keep a promise: so little is lost, or so fast it is.

    Methods compete on a third of the pictures at most; what wins is proved on the others. Without a model and data it tunes
    the tiny model on the mini benchmark. A stopped search goes on when the same command is given again.
    """
    from fastervlm.eval.subject import Subject
    from fastervlm.families.llava_next.settings import Anyres
    from fastervlm.tune.plan import planned_times
    from fastervlm.tune.run import tune as run
    from fastervlm.tune.search import Promise

    promise = Promise(None if at_most is None else at_most / 100, confidence, ttft)
    if qa_file is None:
        benchmark, path, files = _benchmark(task, model, data, question_file, image_folder, annotation_file)
    else:
        benchmark, path, files = _own(qa_file, image_folder, model, (data, question_file, annotation_file))
    tokens = budgets_of(visual_token_num)
    if plan_device is not None and plan_shape is None:
        raise UserError("--plan-device is the device of a plan; give --plan-shape too, such as llava-1.5-7b.")
    planned = None if plan_shape is None else planned_times(plan_shape, plan_device or "h100", tokens, batch_size)
    subject = Subject(path, dtype, device, Anyres(anyres, newline, budget))
    folder = out_dir or files["question_file"].parent / "tune" / subject.name
    asked = {"batch_size": batch_size, "limit": limit, "conv_mode": conv_mode, "max_new_tokens": max_new_tokens}
    settings = pictures_of(benchmark, folder, files, **asked, image_aspect_ratio=image_aspect_ratio, exif=exif)
    names = None if methods is None else names_of(methods)
    with resumable():
        tuned = run(subject, settings, promise, budgets=tokens, methods=names, out_dir=folder, seed=seed, planned=planned)
    _tell(tuned, folder)


def _benchmark(task: str, model: str | None, *files: Path | None) -> tuple[Task, str, dict[str, Any]]:
    """A benchmark, the model, and the benchmark's files."""
    from fastervlm.eval import get_task

    benchmark = get_task(task)
    return benchmark, *model_and_files(benchmark, model, *files)


def _own(file: Path, images: Path | None, model: str | None, others: Sequence[Path | None]) -> tuple[Task, str, dict[str, Any]]:
    """The user's own questions, the model, and their files."""
    from fastervlm.embedded import embedded_model
    from fastervlm.tune.own import OWN

    if any(each is not None for each in others):
        raise UserError("--qa-file stands for the questions and their answers; leave --data and the other files out.")
    files = {"question_file": file, "media_folder": images or file.parent, "annotation_file": file}
    return OWN, model or str(embedded_model()), files


def _tell(tuned: Tuned, folder: Path) -> None:
    """Print the frontier, what is recommended, where the files are, and what failed."""
    from fastervlm.reporting.tables import print_table

    print_table(*tuned.table(), keys=2)
    print("\n".join(tuned.lines()))
    drawn = tuned.found.points
    print(
        f"Table{', numbers and plot' if drawn else ' and numbers'}: {folder}/tune.md, tune.json{', tune.png' if drawn else ''}"
    )
    report_failures(len(tuned.failures), tuned.failures)
