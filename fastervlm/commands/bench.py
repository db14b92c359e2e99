"""`fastervlm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
    check_json,
    model_and_data,
    names_of,
    report_failures,
    resumable,
)
from fastervlm.commands.numbers import WHOLE, budgets_of, whole_numbers

METHODS = "none,cls,reference-route"  # of the models that the reference implementation knows
SHARES = "0.5,0.25,0.1,0.05"
COUNTS = "432,288,144,72"

Preset = Annotated[Literal["fastv"], typer.Option(help="fastv: FastV's latency experiment, with the [CLS] method beside it.")]
ShapeName = Annotated[
    str | None, typer.Option("--shape", help="Speed alone, of a model of this shape with random weights, such as llava-1.5-7b.")
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Goes with --shape, whose weights are random.")]
LlmLayers = Annotated[
    int | None, typer.Option(help="Goes with --shape: layers of the language model, fewer than the shape has.", **WHOLE)
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Speed alone, of these, separated by commas: none (the stock model), reference-route (as the reference "
        "implementation does), and methods of fastervlm.prune; of a shape if left out none, the model's own, and that route."
    ),
]
Batches = Annotated[str | None, typer.Option("--batch", help="Of speed alone: prompts at a time, separated by commas; 1.")]
TextTokens = Annotated[int | None, typer.Option(help="Of speed alone: words of a prompt; 64.", **WHOLE)]
Out = Annotated[
    Path | None,
    typer.Option(help="Of speed alone: where the numbers go (.json), table and plot beside it; bench-NAME.json if left out."),
]
TaskOption = Annotated[str, typer.Option(help="The benchmark that gives the score.")]
OutDir = Annotated[Path | None, typer.Option(help="Where the results go; bench/MODEL beside the question file if left out.")]
Budgets = Annotated[
    str | None, typer.Option(help=f"Budgets, separated by commas; {COUNTS}, of speed alone {SHARES}, if left out.")
]
Layer = Annotated[int, typer.Option(help="The first layer that FastV prunes, counted from 0.", **WHOLE)]
ScoreLimit = Annotated[int | None, typer.Option(help="Questions that are scored, from the first on; 200.", **WHOLE)]
ScoreBatch = Annotated[int | None, typer.Option(help="Questions answered at a time for the score; 16.", **WHOLE)]
Samples = Annotated[int | None, typer.Option(help="Questions that are timed, each alone; 4.", **WHOLE)]
Repeats = Annotated[int, typer.Option(help="How often each is timed, in turns, after a round that warms up.", **WHOLE)]
NewTokens = Annotated[int, typer.Option(help="Length of each timed answer.", **WHOLE)]
In4Bit = Annotated[bool, typer.Option("--load-in-4bit", help="Hold the language model's weights in 4 bits.")]
In8Bit = Annotated[bool, typer.Option("--load-in-8bit", help="Hold the language model's weights in 8 bits.")]


def bench(
    *,
    preset: Preset = "fastv",
    model: OptionalModel = None,
    shape: ShapeName = None,
    random_weights: RandomWeights = False,
    llm_layers: LlmLayers = None,
    methods: Methods = None,
    batch: Batches = None,
    text_tokens: TextTokens = None,
    out: Out = None,
    task: TaskOption = "textvqa",
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    out_dir: OutDir = None,
    visual_token_num: Budgets = None,
    layer: Layer = 2,
    limit: ScoreLimit = None,
    batch_size: ScoreBatch = None,
    samples: Samples = None,
    repeats: Repeats = 5,
    new_tokens: NewTokens = 64,
    load_in_4bit: In4Bit = False,
    load_in_8bit: In8Bit = False,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
) -> None:
    """Time to first token, decoding, memory and KV cache of one model under several methods, in one table.

    With --shape or --methods speed alone is measured, on made-up pictures: time to first token and its stages, decoding,
    memory, work. Otherwise the score on a benchmark stands beside; without a model and data the tiny model of this checkout is
    measured on the mini benchmark.
    """
    quantize = _quantize(load_in_4bit, load_in_8bit)
    files = {"question_file": question_file, "image_folder": image_folder, "annotation_file": annotation_file}
    shared = {"repeats": repeats, "new_tokens": new_tokens}
    asked = {"conv_mode": conv_mode, "image_aspect_ratio": image_aspect_ratio}
    shaped = {"random_weights": random_weights, "llm_layers": llm_layers}
    if shape is None and methods is None:
        only = shaped | {"batch": batch, "text_tokens": text_tokens, "out": out}
        _refuse(only, "belongs to a benchmark of speed alone; give --shape or --methods too")
        more = {"limit": _or(limit, 200), "batch_size": _or(batch_size, 16), **asked}
        budgets = budgets_of(visual_token_num or COUNTS)
        _scored(preset, model, task, files, out_dir, (dtype, device, quantize), more, budgets, layer, _or(samples, 4), shared)
        return
    only = files | {"out_dir": out_dir, "limit": limit, "batch_size": batch_size, "samples": samples, **asked}
    _refuse(only, "belongs to a benchmark with a score; leave it out beside --shape and --methods")
    if shape is not None:
        _refuse({"model": model, "load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}, "cannot go with --shape")
    else:
        _refuse(shaped, "goes with --shape; name one, such as llava-1.5-7b")
    compared = {"methods": methods and names_of(methods), "budgets": budgets_of(visual_token_num or SHARES), "layer": layer}
    compared["batches"] = whole_numbers("batch", batch or "1")
    _speed((shape, llm_layers), model, (dtype, device, quantize), _or(text_tokens, 64), compared, out, shared)


def _scored(
    preset: str,
    model: str | None,
    task: str,
    files: dict[str, Path | None],
    out_dir: Path | None,
    placed: tuple[str | None, str | None, Literal["4bit", "8bit"] | None],
    settings: dict[str, Any],
    budgets: list[int | float],
    layer: int,
    samples: int,
    shared: dict[str, int],
) -> None:
    """The benchmark with a score."""
    from fastervlm.bench import PRESETS
    from fastervlm.bench import bench as run
    from fastervlm.bench.workload import check_numbers
    from fastervlm.eval import get_task
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.reporting.tables import print_table

    check_numbers(samples=samples, **shared)
    benchmark, (dtype, device, quantize) = get_task(task), placed
    files["annotation_file"] = benchmark.annotations(files["question_file"], files["annotation_file"])
    model, data = model_and_data(model, **files)
    subject = Subject(model, dtype, device, quantize=quantize)
    folder = out_dir or data["question_file"].parent / "bench" / "-".join(filter(None, (subject.name, quantize)))
    chosen = Settings(task=benchmark, answers_file=folder / "all.jsonl", medium=Pictures(), **settings, **data)
    with resumable():
        cases = PRESETS[preset](subject, chosen, budgets, layer, folder)
        result = run(subject, cases, out_dir=folder, samples=samples, **shared)
    print_table(*result.table(), keys=2)
    print(f"Table, numbers and plot: {folder}/bench.md, bench.json, bench.png")
    report_failures(len(result.failures), result.failures)


def _speed(
    built: tuple[str | None, int | None],
    model: str | None,
    placed: tuple[str | None, str | None, Literal["4bit", "8bit"] | None],
    text_tokens: int,
    compared: dict[str, Any],
    out: Path | None,
    shared: dict[str, int],
) -> None:
    """The benchmark of speed alone."""
    from fastervlm.bench.shapes import get_shape
    from fastervlm.bench.speed import speed
    from fastervlm.bench.variants import pruners_of, variants
    from fastervlm.bench.workload import Workload, check_numbers
    from fastervlm.checkpoints.config import find_device, find_dtype
    from fastervlm.embedded import embedded_model
    from fastervlm.reporting.tables import print_table

    check_numbers(text_tokens=text_tokens, **shared)
    pruners_of(compared["methods"] or (), compared["layer"])  # what is wrong with them is said before weights are made
    shape, llm_layers = built
    dtype, device, quantize = placed
    check_json(out)
    if shape is None:
        name = str(embedded_model()) if model is None else model
        workload = Workload.of_checkpoint(name, dtype, device, quantize, text_tokens)
    else:
        target = find_device(device)
        workload = Workload.of_shape(get_shape(shape).with_layers(llm_layers), find_dtype(dtype, target), target, text_tokens)
    if compared["methods"] is None:
        family = workload.family
        compared["methods"] = names_of(METHODS) if family.of_paper else ["none", family.default_method(workload.model)]
    file = out or Path(f"bench-{workload.name}.json")
    result = speed(workload, variants(workload, **compared), **shared)
    result.write(file)
    print_table(*result.table(), keys=3)
    print(f"Stages, memory and work, numbers and plot: {file.with_suffix('.md')}, {file}, {file.with_suffix('.png')}")
    for lost in result.failures:
        print(f"fastervlm: {lost['method']} {lost['visual_token_num']} at batch {lost['batch']} did not fit into memory.")


def _or(given: int | None, usual: int) -> int:
    return usual if given is None else given


def _refuse(given: dict[str, Any], reason: str) -> None:
    """Refuse options that mean nothing here."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise UserError(f"--{name.replace('_', '-')} {reason}.")


def _quantize(four: bool, eight: bool) -> Literal["4bit", "8bit"] | None:
    """How the weights are held, by the two flags."""
    if four and eight:
        raise UserError("--load-in-4bit and --load-in-8bit exclude each other; give one of them.")
    return "4bit" if four else "8bit" if eight else None
