"""`fastervlm bench`, in its three uses: `task` with a score; `model` and `shape` of speed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from encoders.errors import UserError
from fastervlm.commands import bench_speed
from fastervlm.commands.bench_options import In4Bit, In8Bit, Layer, NewTokens, Repeats, quantized
from fastervlm.commands.common import (
    AspectRatio,
    ConvMode,
    Device,
    Dtype,
    OptionalAnnotationFile,
    OptionalImageFolder,
    OptionalModel,
    OptionalQuestionFile,
    TaskOption,
    model_and_data,
    report_failures,
    resumable,
)
from fastervlm.commands.numbers import WHOLE, budgets_of

Preset = Annotated[Literal["fastv"], typer.Option(help="fastv: FastV's latency experiment, with the [CLS] method beside it.")]
OutDir = Annotated[Path | None, typer.Option(help="Where the results go; bench/MODEL beside the question file if left out.")]
Budgets = Annotated[str, typer.Option(help="Budgets, separated by commas.")]
ScoreLimit = Annotated[int, typer.Option(help="Questions that are scored, from the first on.", **WHOLE)]
ScoreBatch = Annotated[int, typer.Option(help="Questions answered at a time for the score.", **WHOLE)]
Samples = Annotated[int, typer.Option(help="Questions that are timed, each alone.", **WHOLE)]


class Uses(TyperGroup):
    """The group of the three uses, which also understands how they were called before there were three."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the use in front where it is missing, and refuse an option that belongs to another one by its name."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = with_use(args)
        if args[0] in self.commands:
            self._refuse_strangers(ctx, args[0], args[1:])
        return super().parse_args(ctx, args)

    def _refuse_strangers(self, ctx: Any, use: str, args: list[str]) -> None:
        of = {name: {opt for each in command.get_params(ctx) for opt in each.opts} for name, command in self.commands.items()}
        for name in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
            others = [f"bench {other}" for other in of if name in of[other]]
            if name not in of[use] and others:
                raise UserError(f"{name} belongs to {' and '.join(others)}, not to bench {use}; leave it out.")


def with_use(args: list[str]) -> list[str]:
    """Arguments of `bench` as it was one command, with the use that its options speak of in front."""
    names = [arg.partition("=")[0] for arg in args]
    if "--shape" in names:
        at = names.index("--shape")
        given = [args[at].partition("=")[2]] if "=" in args[at] else args[at + 1 : at + 2]
        return ["shape", *given, *args[:at], *args[at + (1 if "=" in args[at] else 2) :]]
    return ["model" if "--methods" in names else "task", *args]


bench = typer.Typer(
    cls=Uses,
    help="Time to first token, decoding, memory and KV cache under several methods, in one table: of a model on a benchmark "
    "(task), of a model alone (model), of a published model's shape with random weights (shape).",
)


@bench.command()
def task(
    *,
    preset: Preset = "fastv",
    model: OptionalModel = None,
    task: TaskOption = "textvqa",
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    annotation_file: OptionalAnnotationFile = None,
    out_dir: OutDir = None,
    visual_token_num: Budgets = "432,288,144,72",
    layer: Layer = 2,
    limit: ScoreLimit = 200,
    batch_size: ScoreBatch = 16,
    samples: Samples = 4,
    repeats: Repeats = 5,
    new_tokens: NewTokens = 64,
    load_in_4bit: In4Bit = False,
    load_in_8bit: In8Bit = False,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
) -> None:
    """Score on a benchmark, and time to first token, decoding, memory and KV cache on its questions, in one table.

    Without a model and data the tiny model is measured on its mini benchmark.
    """
    from fastervlm.bench import PRESETS
    from fastervlm.bench import bench as run
    from fastervlm.bench.workload import check_numbers
    from fastervlm.eval import get_task
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.reporting.tables import print_table

    quantize = quantized(load_in_4bit, load_in_8bit)
    check_numbers(samples=samples, repeats=repeats, new_tokens=new_tokens)
    benchmark, budgets = get_task(task), budgets_of(visual_token_num)
    right = benchmark.annotations(question_file, annotation_file)
    path, data = model_and_data(model, question_file=question_file, image_folder=image_folder, annotation_file=right)
    subject = Subject(path, dtype, device, quantize=quantize)
    folder = out_dir or data["question_file"].parent / "bench" / "-".join(filter(None, (subject.name, quantize)))
    asking = {"limit": limit, "batch_size": batch_size, "conv_mode": conv_mode, "image_aspect_ratio": image_aspect_ratio}
    settings = Settings(task=benchmark, answers_file=folder / "all.jsonl", medium=Pictures(), **(asking | data))
    with resumable():
        cases = PRESETS[preset](subject, settings, budgets, layer, folder)
        result = run(subject, cases, out_dir=folder, samples=samples, repeats=repeats, new_tokens=new_tokens)
    print_table(*result.table(), keys=2)
    print(f"Table, numbers and plot: {folder}/bench.md, bench.json, bench.png")
    report_failures(len(result.failures), result.failures)


bench.command()(bench_speed.model)
bench.command()(bench_speed.shape)
