"""The command line: `fastervlm`, or `python -m fastervlm.cli`.

Each command is a thin layer over a library call; heavy imports wait until a command runs. Other packages add commands by
an entry point in the group `fastervlm.commands` that is a function or a typer app.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.convert import convert
from fastervlm.commands.towers import towers

app = typer.Typer(
    help="Prune the visual tokens of a CLIP vision-language model by the attention of its [CLS] token, and measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="The benchmark, for example textvqa.")]
ModelPath = Annotated[str, typer.Option("--model", "--model-path", help="Folder of the model, or its name on the hub.")]
QuestionFile = Annotated[Path, typer.Option(help="Questions, in the benchmark's own layout.")]
ImageFolder = Annotated[Path, typer.Option(help="Folder of the pictures named in the question file.")]
AnnotationFile = Annotated[Path, typer.Option(help="The right answers.")]
BatchSize = Annotated[int, typer.Option(help="Questions answered at a time.")]
Limit = Annotated[int | None, typer.Option(help="Take only the first questions.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; chosen for the device if left out.")]
Device = Annotated[str | None, typer.Option(help="For example cpu or cuda; chosen if left out.")]
ConvMode = Annotated[
    str | None,
    typer.Option(help="Prompt template: vicuna_v1, llava_v1, or chat for the processor's own; chat if there is one."),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens; the benchmark's own if left out.")]
AspectRatio = Annotated[
    str | None,
    typer.Option("--image-aspect-ratio", help="pad to a square, square: leave it to the processor, or anyres: cut into crops."),
]
AnyresMode = Annotated[
    Literal["native", "paper"],
    typer.Option("--anyres", help="Layout of pictures cut into crops: the model's own, or the reference implementation's."),
]
Newline = Annotated[Literal["kept", "all", "none"], typer.Option(help="Newline tokens that stay in the native layout.")]
Budget = Annotated[
    Literal["crop", "image"], typer.Option(help="Each crop keeps its own tokens, or an image's crops share them.")
]


@app.command("eval")
def eval_(
    task: TaskName,
    *,
    model: ModelPath,
    question_file: QuestionFile,
    image_folder: ImageFolder,
    answers_file: Annotated[Path, typer.Option(help="Where the answers go (.jsonl).")],
    annotation_file: Annotated[
        Path | None, typer.Option(help="The right answers, if the question file does not hold them; without them no score.")
    ] = None,
    visual_token_num: Annotated[
        str | None, typer.Option(help="Visual tokens kept: a count (58) or a fraction (0.1); all if left out.")
    ] = None,
    method: Annotated[str, typer.Option(help="A pruning method, such as cls, cls-lowest, random or grid.")] = "cls",
    seed: Annotated[int, typer.Option(help="Of a random method and of sampling.")] = 0,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_new_tokens: MaxNewTokens = None,
    image_aspect_ratio: AspectRatio = None,
    anyres: AnyresMode = "native",
    newline: Newline = "kept",
    budget: Budget = "crop",
    overlay: Annotated[Path | None, typer.Option(help="Save a PNG of what was kept for the first question.")] = None,
) -> None:
    """Answer a benchmark's questions and score the answers."""
    from fastervlm.anyres import Anyres
    from fastervlm.eval import get_task
    from fastervlm.eval.overlay import save_overlay
    from fastervlm.eval.runner import evaluate
    from fastervlm.eval.settings import Settings, seeded
    from fastervlm.eval.subject import Subject

    benchmark = get_task(task)
    settings = Settings(
        task=benchmark,
        question_file=question_file,
        image_folder=image_folder,
        answers_file=answers_file,
        annotation_file=annotation_file or (question_file if benchmark.answers_inside else None),
        keep=None if visual_token_num is None else _number(visual_token_num),
        method=seeded(method, seed),
        batch_size=batch_size,
        limit=limit,
        conv_mode=conv_mode,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        image_aspect_ratio=image_aspect_ratio,
        seed=seed,
    )
    if settings.keep is None and method != "cls":
        raise UserError(f"--method {method} prunes nothing without a budget; give --visual-token-num as well.")
    if overlay:
        _check_overlay(overlay, settings.keep)
    subject = Subject(model, dtype, device, Anyres(anyres, newline, budget))
    with _resumable():
        protocol, score = evaluate(subject, settings)
    print("\n".join([*(score.lines() if score else ["No score."]), *_speed_lines(protocol)]))
    print(f"Answers: {answers_file}")
    if overlay and protocol["answered"]:
        save_overlay(subject, settings, overlay)
        print(f"Picture of the kept tokens: {overlay}")
    _report_failures(protocol["failed"], protocol["failures"])


def _check_overlay(overlay: Path, keep: int | float | None) -> None:
    """Refuse, before the run, a picture that could not be drawn or written after it."""
    from fastervlm.eval.answers import writable_folder

    if keep is None or overlay.suffix != ".png" or overlay.is_dir():
        raise UserError("--overlay saves what pruning kept; give it a .png file, and --visual-token-num as well.")
    writable_folder(overlay.parent)


@app.command()
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


@app.command()
def compare(
    *,
    model: Annotated[str | None, typer.Option("--model", "--model-path", help="Folder or hub name of the model.")] = None,
    question_file: Annotated[Path | None, typer.Option(help="Questions, in the benchmark's own layout.")] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Folder of the pictures named in the question file.")] = None,
    annotation_file: Annotated[
        Path | None, typer.Option(help="The right answers, if the question file does not hold them.")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Where answers, table and plot go; compare/MODEL beside the question file if left out.")
    ] = None,
    task: Annotated[str, typer.Option(help="The benchmark.")] = "textvqa",
    visual_token_num: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "576,288,144,58,29",
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "cls,random,grid",
    layers: Annotated[
        str | None, typer.Option(help="Layers at which methods such as fastv prune, separated by commas; its own if left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of a random method.")] = 3,
    blind: Annotated[bool, typer.Option("--blind", help="Add the floor: every picture replaced by grey.")] = False,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    max_new_tokens: MaxNewTokens = None,
    image_aspect_ratio: AspectRatio = None,
    anyres: AnyresMode = "native",
    newline: Newline = "kept",
    budget: Budget = "crop",
) -> None:
    """Table and plot of accuracy and time to first token over visual tokens and methods.

    Without a model and data it compares the tiny model of this checkout on the mini benchmark; without data a tiny model.
    """
    from fastervlm.anyres import Anyres
    from fastervlm.eval import get_task
    from fastervlm.eval.compare import compare as run
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.report import print_table

    benchmark = get_task(task)
    annotation_file = annotation_file or (question_file if benchmark.answers_inside else None)
    model, questions, images, annotations = _what_to_compare(model, question_file, image_folder, annotation_file)
    subject = Subject(model, dtype, device, Anyres(anyres, newline, budget))
    out_dir = out_dir or questions.parent / "compare" / subject.name
    settings = Settings(
        task=benchmark,
        question_file=questions,
        image_folder=images,
        answers_file=out_dir / "all.jsonl",
        annotation_file=annotations,
        batch_size=batch_size,
        limit=limit,
        conv_mode=conv_mode,
        max_new_tokens=max_new_tokens,
        image_aspect_ratio=image_aspect_ratio,
    )
    budgets = [_number(text) for text in visual_token_num.split(",")]
    names = [name.strip() for name in methods.split(",")]
    pruned_at = [] if layers is None else [_layer(text) for text in layers.split(",")]
    choice = {"budgets": budgets, "methods": names, "layers": pruned_at, "seeds": seeds, "blind": blind}
    with _resumable():
        comparison = run(subject, settings, out_dir=out_dir, **choice)
    print_table(*comparison.table())
    for name, table in comparison.layer_tables().items():
        print_table(*table, title=f"{name}, by layer")
    print(f"Table, numbers and plot: {out_dir}/compare.md, compare.json, compare.png")
    _report_failures(comparison.failed, comparison.failures)


def _what_to_compare(model: str | None, *files: Path | None) -> tuple[str, Path, Path, Path]:
    """Model, question file, image folder and annotation file as given, or those of a tiny model if none is."""
    from fastervlm.embedded import BENCHMARKS, embedded_benchmark, embedded_model

    given = [path for path in files if path is not None]
    if model is not None and len(given) == 3:
        return model, given[0], given[1], given[2]
    tiny = embedded_model() if model is None else Path(model).resolve()
    if given or tiny not in BENCHMARKS:
        raise UserError(
            "Give --model, --question-file, --image-folder and --annotation-file together, or none of them for the tiny model."
        )
    return str(tiny), *embedded_benchmark(tiny)


def _number(text: str) -> int | float:
    """A token budget as typed."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UserError(f"--visual-token-num is {text!r}; give a count such as 58 or a fraction such as 0.1.")


def _layer(text: str) -> int:
    """A layer as typed."""
    if not text.strip().isdecimal():
        raise UserError(f"--layers is {text!r}; give layers counted from 0, such as 1,2,3,5.")
    return int(text)


def _speed_lines(protocol: dict[str, Any]) -> list[str]:
    first, rate = protocol["mean_time_to_first_token_s"], protocol["samples_per_second"]
    if protocol["mean_visual_tokens"] is None:
        return []
    most = protocol["visual_token_num"]
    each = f", at most {most} a crop" if protocol["anyres"] and isinstance(most, int) else ""
    before = protocol["mean_visual_tokens_unpruned"]
    kept = f"Visual tokens: {protocol['mean_visual_tokens']:.5g} of {before:.5g} a question{each}"
    if rate is None:
        return [kept]
    return [
        kept,
        f"Speed: {rate:.1f} samples/s, {1000 * first:.1f} ms to the first token of a batch of {protocol['batch_size']}",
    ]


def _report_failures(failed: int, failures: list[dict[str, Any]] | None = None) -> None:
    """Name what failed and end with exit code 1, if anything did."""
    if not failed:
        return
    for failure in failures or []:
        print(f"fastervlm: question {failure['question_id']}: {failure['image']} {failure['reason']}", file=sys.stderr)
    print(f"fastervlm: {failed} questions failed and are not in the score; the next run tries them again.", file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("fastervlm: stopped; the same command goes on where this one stopped.", file=sys.stderr)
        raise typer.Exit(130) from None


def add_commands() -> None:
    """Register the commands that have a file of their own, and those of other packages."""
    app.command()(convert)
    app.command()(towers)
    for point in entry_points(group="fastervlm.commands"):
        command = point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    add_commands()
    try:
        app(prog_name="fastervlm")
    except UserError as error:
        print(f"fastervlm: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
