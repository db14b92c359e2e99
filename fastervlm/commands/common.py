"""What commands have in common: options, defaults, what happens at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.names import METHODS, SHIPPED, TASKS, TINY, completer, list_completer, listed
from fastervlm.commands.numbers import WHOLE
from fastervlm.reporting.shadows import shadow

if TYPE_CHECKING:
    from fastervlm.eval.engine import Engine
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.task import Submission, Task

OWN_TASK = "textvqa"  # whose mini benchmark is drawn for the tiny models


def named(typed: str) -> str:
    """A model as typed: the tiny ones go by their names."""
    from fastervlm.embedded import named_model

    try:
        return named_model(typed)
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help=f"The benchmark: {listed(TASKS)}.", autocompletion=completer(TASKS))
]
TaskOption = Annotated[str, typer.Option("--task", help=f"The benchmark: {listed(TASKS)}.", autocompletion=completer(TASKS))]
BatchSize = Annotated[int, typer.Option(help="Questions answered at a time.", **WHOLE)]
Limit = Annotated[int | None, typer.Option(help="Ask only the first questions; the others do not count.", **WHOLE)]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; chosen for the device if left out.")]
Device = Annotated[str | None, typer.Option(help="For example cpu or cuda; chosen if left out.")]
ConvMode = Annotated[
    str | None,
    typer.Option(help="Prompt template: vicuna_v1, llava_v1, or chat for the processor's own; chat if there is one."),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens; the benchmark's own if left out.", **WHOLE)]
AspectRatio = Annotated[
    str | None,
    typer.Option(
        "--image-aspect-ratio",
        help="pad to a square, square: leave it to the processor, anyres: cut into crops, or native: the picture's own shape.",
    ),
]
ExifTurn = Annotated[
    Literal["ignore", "upright"],
    typer.Option("--exif", help="Read pictures as they are stored, as reference code does, or turned as the camera was held."),
]
AnyresMode = Annotated[
    Literal["native", "paper"],
    typer.Option("--anyres", help="Layout of pictures cut into crops: the model's own, or the reference implementation's."),
]
Newline = Annotated[Literal["kept", "all", "none"], typer.Option(help="Newline tokens that stay in the native layout.")]
Budget = Annotated[
    Literal["crop", "image", "overview"],
    typer.Option(help="Each crop keeps its own tokens, or an image's crops share them, by score or as the overview says."),
]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Answer in this process, or in workers by Ray: several GPUs, a cluster."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="With --engine ray: how many; if left out one for each GPU, or each machine without GPUs.", **WHOLE),
]
Address = Annotated[
    str | None, typer.Option(help="With --engine ray: the cluster to join, auto for this machine's; started here if left out.")
]
_MODEL: dict[str, Any] = {
    "help": f"Folder of the model, its name on the hub, or one that ships: {listed(SHIPPED)}. The tiny model if left out.",
    "metavar": "TEXT",
    "autocompletion": completer(TINY),
}
OptionalModel = Annotated[str | None, typer.Option("--model", "--model-path", parser=named, **_MODEL)]
ModelOrServed = Annotated[str | None, typer.Option("--model", "--model-path", **_MODEL)]  # as typed, which a server may know
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"How tokens are chosen: {listed(METHODS)}; METHOD+fastv, with FastV on top; or METHOD:SCORE with what scores "
        "patches, such as cls:received. The default of the kind of model if left out.",
        autocompletion=completer(METHODS),
    ),
]
MethodNames = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help=f"Methods, separated by commas, each a METHOD, METHOD+fastv (FastV on top) or METHOD:SCORE: {listed(METHODS)}. "
        "The default of the kind of model, random and grid if left out.",
        autocompletion=list_completer(METHODS),
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option(help="The benchmark's folder, its files under their usual names; see fastervlm data.")
]
OptionalImageFolder = Annotated[Path | None, typer.Option(help="Folder of the pictures named in the question file.")]
OptionalQuestionFile = Annotated[Path | None, typer.Option(help="Questions, in the benchmark's own layout.")]
OptionalAnnotationFile = Annotated[
    Path | None, typer.Option(help="The right answers, if the question file does not hold them.")
]


def model_and_data(model: str | None, **files: Path | None) -> tuple[str, dict[str, Any]]:
    """The model and its files as given, or a tiny model and those of its mini benchmark; by the names of `Settings`.

    Args:
        model: as given.
        files: any of `question_file`, `image_folder`, `annotation_file`, as given.
    """
    from fastervlm.embedded import BENCHMARKS, embedded_benchmark, embedded_model, named_model

    given = {name: path for name, path in files.items() if path is not None}
    if model is not None and len(given) == len(files):
        return model, settings_of(given)
    tiny = embedded_model() if model is None else Path(named_model(model)).resolve()
    if given or tiny not in BENCHMARKS:
        *options, last = (f"--{name.replace('_', '-')}" for name in ("model", *files))
        raise UserError(f"Give {', '.join(options)} and {last} together, or none of them for the tiny model.")
    names = ("question_file", "image_folder", "annotation_file")
    found: dict[str, Path] = dict(zip(names, embedded_benchmark(tiny), strict=True))
    known = str(tiny) if model is None or Path(model).resolve() == tiny else model  # a server knows it by the name given
    return known, settings_of({name: found[name] for name in files})


def model_and_files(
    task: Task, model: str | None, data: Path | None, questions: Path | None, images: Path | None, right: Path | None
) -> tuple[str, dict[str, Any]]:
    """The model, and the benchmark's files by its folder or one by one; the tiny ones where they are left out."""
    from fastervlm.embedded import embedded_model

    if data is not None:
        return model or str(embedded_model()), files_in(task, data, questions, images, right)
    if task.name != OWN_TASK and questions is None:
        raise UserError(f"The mini benchmark is {OWN_TASK}'s; give --data with the folder of {task.name}, or its files.")
    right = task.annotations(questions, right)
    return model_and_data(model, question_file=questions, image_folder=images, annotation_file=right)


def pictures_of(task: Task, folder: Path, files: Mapping[str, Any], **asked: Any) -> Settings:
    """What all runs of a table or a search share: the task and its `files`, how it is `asked`, and the folder of answers."""
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.settings import Settings

    return Settings(task=task, answers_file=folder / "all.jsonl", medium=Pictures(), **asked, **files)


def default_answers(question_file: Path, model: str, method: str | None, kept: str | None) -> Path:
    """Where the answers go if nothing else is said."""
    from fastervlm.eval.answers import answers_in

    folder = question_file.parent / "answers" / Path(model).name
    return folder / "all.jsonl" if kept is None else answers_in(folder, method or _usual_method(model), kept)


def _usual_method(model: str) -> str:
    """What a model of that kind is pruned by where nothing is said."""
    from fastervlm.checkpoints.config import read_config
    from fastervlm.checkpoints.original import is_original
    from fastervlm.families.registry import family_of_type

    told = read_config(model)
    return "cls" if is_original(told) else family_of_type(str(told.get("model_type")), model).usual_method


def files_in(task: Task, data: Path, *others: Path | None) -> dict[str, Any]:
    """The files of a benchmark in its folder, by the names of `Settings`; refused if `others` are given as well."""
    from fastervlm.eval.data import files_of

    if any(path is not None for path in others):
        raise UserError("--data stands for the question file, the image folder and the annotation file; leave those out.")
    return files_of(task, data)


def settings_of(files: Mapping[str, Path | None]) -> dict[str, Any]:
    """Files by the names of their options as `Settings` calls them."""
    return {"media_folder" if name in ("image_folder", "video_dir") else name: path for name, path in files.items()}


def clips(**settings: Any) -> Any:
    """How clips are read, by the package above that knows it, with its settings."""
    if hidden := shadow("video"):
        raise UserError(hidden)
    for point in entry_points(group="fastervlm.media", name="video"):
        return point.load()(**settings)
    raise UserError("No installed package reads clips; install fastervlm again, with its package video.")


def engine_of(name: str, workers: int | None, address: str | None) -> Engine | None:
    """The engine as asked for, None for this process."""
    if name == "ray":
        from fastervlm.eval.ray_engine import RayEngine

        return RayEngine(workers, address)
    if workers is not None or address is not None:
        raise UserError("--workers and --address belong to --engine ray; add it, or leave them out.")
    return None


def check_method(method: str | None, kept: object) -> None:
    """Refuse a method where nothing is pruned."""
    if kept is None and method not in (None, "cls"):
        raise UserError(f"--method {method} prunes nothing without a budget; give --visual-token-num as well.")


def names_of(text: str) -> list[str]:
    """Names as typed, separated by commas."""
    return [name.strip() for name in text.split(",")]


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends with one sentence."""
    try:
        yield
    except KeyboardInterrupt:
        print("fastervlm: stopped; the same command goes on where this one stopped.", file=sys.stderr)
        raise typer.Exit(130) from None


def refusal_of(forgiven: Sequence[str]) -> str:
    """What was forgiven, as a refusal."""
    return f"{forgiven[0].rstrip('.')}; mend the answers, or leave --strict out to have it passed over with a warning."


def write_submission(submission: Submission, answers: Path, question_file: Path, out: Path, strict: bool = False) -> None:
    """Write what a benchmark's server takes and tell where it goes, what was passed over and what has no answer."""
    from fastervlm.eval.answers import read_other_answers

    every, forgiven = read_other_answers(answers, reads_prompt=False)
    if not every:
        raise UserError(f"There is no answer to submit; {answers} is empty.")
    given, strays = submission.known(every, question_file)
    if strict and (forgiven or strays):
        raise UserError(refusal_of(forgiven + strays))
    for fault in forgiven + strays:
        print(f"fastervlm: {fault}", file=sys.stderr)
    answered, asked = submission.write(given, question_file, out)
    print(f"For {submission.address}: {out}, with answers to {answered} of {asked} questions")
    if answered < asked:
        left = asked - answered
        print(f"fastervlm: the submission is not complete; {left} of {asked} questions have no answer.", file=sys.stderr)


def report_failures(failed: int, failures: Sequence[dict[str, Any]] = ()) -> None:
    """Name what failed and end with exit code 1, if anything did."""
    if not failed:
        return
    for failure in failures:
        file, reason = failure["image"], failure["reason"]
        named = reason if file in reason or file == "None" else f"{file} {reason}"
        print(f"fastervlm: question {failure['question_id']}: {named}", file=sys.stderr)
    print(f"fastervlm: {failed} questions failed and have no result; the next run tries them again.", file=sys.stderr)
    raise typer.Exit(1)
