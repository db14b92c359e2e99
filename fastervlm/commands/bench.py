"""`fastervlm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.common import (
    AspectRatio,
    ConvMode,
    Device,
    Dtype,
    OptionalAnnotationFile,
    OptionalImageFolder,
    OptionalModel,
    OptionalQuestionFile,
    budgets_of,
    model_and_data,
    report_failures,
    resumable,
)


def bench(
    *,
    preset: Annotated[
        Literal["fastv"], typer.Option(help="fastv: FastV's latency experiment, with the [CLS] method beside it.")
    ] = "fastv",
    model: OptionalModel = None,
    task: Annotated[str, typer.Option(help="The benchmark that gives the score.")] = "textvqa",
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Where the results go; bench/MODEL beside the question file if left out.")
    ] = None,
    visual_token_num: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "432,288,144,72",
    layer: Annotated[int, typer.Option(help="The first layer that FastV prunes, counted from 0.")] = 2,
    limit: Annotated[int, typer.Option(help="Questions that are scored, from the first on.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Questions answered at a time for the score.")] = 16,
    samples: Annotated[int, typer.Option(help="Questions that are timed, each alone.")] = 4,
    repeats: Annotated[int, typer.Option(help="How often each is timed, in turns, after a round that warms up.")] = 5,
    new_tokens: Annotated[int, typer.Option(help="Length of each timed answer.")] = 32,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Hold the language model's weights in 4 bits.")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Hold the language model's weights in 8 bits.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
) -> None:
    """Score, time to first token, total time, peak memory and KV cache of one model under several methods, in one table.

    Without a model and data it measures the tiny model of this checkout on the mini benchmark.
    """
    from fastervlm.bench import PRESETS
    from fastervlm.bench import bench as run
    from fastervlm.eval import get_task
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.report import print_table

    quantize = _quantize(load_in_4bit, load_in_8bit)
    benchmark = get_task(task)
    right = benchmark.annotations(question_file, annotation_file)
    model, data = model_and_data(model, question_file=question_file, image_folder=image_folder, annotation_file=right)
    subject = Subject(model, dtype, device, quantize=quantize)
    folder = out_dir or data["question_file"].parent / "bench" / "-".join(filter(None, (subject.name, quantize)))
    settings = Settings(
        task=benchmark,
        answers_file=folder / "all.jsonl",
        batch_size=batch_size,
        limit=limit,
        conv_mode=conv_mode,
        image_aspect_ratio=image_aspect_ratio,
        **data,
    )
    with resumable():
        cases = PRESETS[preset](subject, settings, budgets_of(visual_token_num), layer, folder)
        result = run(subject, cases, out_dir=folder, samples=samples, repeats=repeats, new_tokens=new_tokens)
    print_table(*result.table())
    print(f"Table, numbers and plot: {folder}/bench.md, bench.json, bench.png")
    report_failures(len(result.failures), result.failures)


def _quantize(four: bool, eight: bool) -> Literal["4bit", "8bit"] | None:
    """How the weights are held, by the two flags."""
    if four and eight:
        raise UserError("--load-in-4bit and --load-in-8bit exclude each other; give one of them.")
    return "4bit" if four else "8bit" if eight else None
