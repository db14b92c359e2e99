"""`fastervlm tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
    MethodNames,
    Newline,
    OptionalAnnotationFile,
    OptionalImageFolder,
    OptionalModel,
    OptionalQuestionFile,
    TaskOption,
    model_and_files,
    names_of,
    resumable,
)
from fastervlm.commands.numbers import DECIMAL, budgets_of, whole


def tune(
    *,
    model: OptionalModel = None,
    at_most: Annotated[
        float | None, typer.Option(help="How much may be lost, in points of accuracy, such as 1.0.", **DECIMAL)
    ] = None,
    confidence: Annotated[float, typer.Option(help="How sure that has to be.", **DECIMAL)] = 0.95,
    ttft: Annotated[
        float | None, typer.Option(help="How many seconds the first token of a batch may take, such as 0.5.", **DECIMAL)
    ] = None,
    data: DataFolder = None,
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    qa_file: Annotated[
        Path | None,
        typer.Option(
            help="Your own questions, one JSON object a line with image, question and answer; pictures lie beside it."
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Where answers, table and plot go; tune/MODEL beside the questions if left out.")
    ] = None,
    task: TaskOption = OWN_TASK,
    visual_token_num: Annotated[
        str, typer.Option(help="Numbers of tokens to try, counts or fractions, separated by commas.")
    ] = "0.5,0.25,0.1,0.05,0.02",
    methods: MethodNames = None,
    seed: Annotated[int, typer.Option(help="By which pictures are drawn for the search and for the trial.", **whole(0))] = 0,
    plan_shape: Annotated[
        str | None,
        typer.Option(help="A shape of fastervlm plan, whose time to the first token is told beside the measured one."),
    ] = None,
    plan_device: Annotated[str, typer.Option(help="The device of that plan: h200, h100, a100, l4 or rtx4090.")] = "h100",
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

    Methods compete on a third of the pictures; what wins is proved on the others. Without a model and data it tunes the tiny
    model on the mini benchmark. A stopped search goes on when the same command is given again.
    """
    from fastervlm.eval import get_task
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.families.llava_next.settings import Anyres
    from fastervlm.reporting.tables import print_table
    from fastervlm.tune.own import OWN
    from fastervlm.tune.plan import planned_times
    from fastervlm.tune.run import tune as run
    from fastervlm.tune.search import Promise

    promise = Promise(None if at_most is None else at_most / 100, confidence, ttft)
    files: dict[str, Any]
    if qa_file is None:
        benchmark = get_task(task)
        path, files = model_and_files(benchmark, model, data, question_file, image_folder, annotation_file)
    else:
        if any(each is not None for each in (data, question_file, annotation_file)):
            raise UserError("--qa-file stands for the questions and their answers; leave --data and the other files out.")
        benchmark, path = OWN, _model(model)
        files = {"question_file": qa_file, "media_folder": image_folder or qa_file.parent, "annotation_file": qa_file}
    tokens = budgets_of(visual_token_num)
    planned = {} if plan_shape is None else planned_times(plan_shape, plan_device, tokens, batch_size)
    subject = Subject(path, dtype, device, Anyres(anyres, newline, budget))
    folder = out_dir or files["question_file"].parent / "tune" / subject.name
    asking = {"batch_size": batch_size, "limit": limit, "conv_mode": conv_mode, "max_new_tokens": max_new_tokens}
    pictures: dict[str, Any] = {"medium": Pictures(), "image_aspect_ratio": image_aspect_ratio, "exif": exif}
    settings = Settings(task=benchmark, answers_file=folder / "all.jsonl", **(asking | pictures | files))
    names = None if methods is None else names_of(methods)
    with resumable():
        tuned = run(subject, settings, promise, budgets=tokens, methods=names, out_dir=folder, seed=seed, planned=planned)
    print_table(*tuned.table(), keys=2)
    print("\n".join(tuned.lines()))
    print(f"Table, numbers and plot: {folder}/tune.md, tune.json, tune.png")
    if tuned.failed:
        print(
            f"fastervlm: {tuned.failed} questions failed and are left out; the next search tries them again.", file=sys.stderr
        )


def _model(model: str | None) -> str:
    from fastervlm.embedded import embedded_model

    return str(embedded_model()) if model is None else model
