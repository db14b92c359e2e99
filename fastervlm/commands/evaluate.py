"""`fastervlm eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoders.errors import UserError
from fastervlm.commands.common import (
    Address,
    AnyresMode,
    AspectRatio,
    BatchSize,
    Budget,
    ConvMode,
    DataFolder,
    Device,
    Dtype,
    EngineName,
    ExifTurn,
    Limit,
    MaxNewTokens,
    MethodName,
    ModelOrServed,
    Newline,
    OptionalAnnotationFile,
    OptionalImageFolder,
    OptionalQuestionFile,
    TaskName,
    Workers,
    check_method,
    default_answers,
    engine_of,
    model_and_files,
    named,
    report_failures,
    resumable,
    write_submission,
)
from fastervlm.commands.endpoint import ApiBase, api_engine
from fastervlm.commands.numbers import DECIMAL, WHOLE, kept

if TYPE_CHECKING:
    from fastervlm.eval import Score
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.eval.task import Submission

Kept = Annotated[
    str | None,
    typer.Option(help="Visual tokens kept: a count (58), a fraction (0.1), or at-most-256 of each picture; all if left out."),
]
AnswersFile = Annotated[
    Path | None, typer.Option(help="Where the answers go (.jsonl); answers/MODEL beside the question file if left out.")
]
Overlay = Annotated[Path | None, typer.Option(help="Save a PNG of what was kept for the first question.")]


def evaluate(
    task: TaskName,
    *,
    model: ModelOrServed = None,
    data: DataFolder = None,
    question_file: OptionalQuestionFile = None,
    image_folder: OptionalImageFolder = None,
    answers_file: AnswersFile = None,
    annotation_file: OptionalAnnotationFile = None,
    visual_token_num: Kept = None,
    method: MethodName = None,
    seed: Annotated[int, typer.Option(help="Of a random method and of sampling.", **WHOLE)] = 0,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", **DECIMAL)] = 0.0,
    max_new_tokens: MaxNewTokens = None,
    image_aspect_ratio: AspectRatio = None,
    exif: ExifTurn = "ignore",
    anyres: AnyresMode = "native",
    newline: Newline = "kept",
    budget: Budget = "crop",
    overlay: Overlay = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    api_base: ApiBase = None,
) -> None:
    """Answer a benchmark's questions and score them; without model and data a tiny model answers its mini benchmark."""
    from fastervlm.eval.runner import evaluate as run
    from fastervlm.eval.settings import Settings, chosen
    from fastervlm.eval.subject import Subject
    from fastervlm.families.llava_next.settings import Anyres

    model, asked = _model_and_task(task, _model(model, api_base), data, question_file, image_folder, annotation_file)
    told = "server" if api_base else method
    settings = Settings(
        **asked,
        answers_file=answers_file or default_answers(asked["question_file"], model, told, visual_token_num),
        keep=None if visual_token_num is None or api_base else kept(visual_token_num),
        **chosen(method, seed),
        batch_size=batch_size,
        limit=limit,
        conv_mode=conv_mode,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        image_aspect_ratio=image_aspect_ratio,
        exif=exif,
        seed=seed,
    )
    here = {"method": method, "dtype": dtype, "device": device, "anyres": anyres, "newline": newline, "budget": budget}
    here |= {"overlay": overlay, "engine": engine, "address": address}
    server = api_engine(api_base, model, workers, visual_token_num, here) if api_base else None
    _check(method, settings.keep, overlay)
    subject = Subject(model, dtype, device, Anyres(anyres, newline, budget))
    with resumable():
        protocol, score = run(subject, settings, server or engine_of(engine, workers, address))
    _tell(subject, settings, protocol, score, overlay)


def _tell(subject: Subject, settings: Settings, protocol: dict[str, Any], score: Score | None, overlay: Path | None) -> None:
    """Print what came out, and write what else was asked for."""
    from fastervlm.eval.overlay import save_overlay

    lines = [*(score.lines() if score else ["No score."]), *speed_lines(protocol), f"Answers: {settings.answers_file}"]
    print("\n".join(lines))
    if settings.task.submission and protocol["answered"]:
        _submit(settings.task.submission, settings)
    if overlay and protocol["answered"]:
        save_overlay(subject, settings, overlay)
        print(f"Picture of the kept tokens: {overlay}")
    report_failures(protocol["failed"], protocol["failures"])


def _model(typed: str | None, api_base: str | None) -> str | None:
    """The model as typed, where a server knows it by that name; else where it lies."""
    if api_base is None:
        return None if typed is None else named(typed)
    if typed is None:
        raise UserError("--api-base needs --model, the model's name on that server.")
    return typed


def _model_and_task(
    name: str, model: str | None, data: Path | None, questions: Path | None, images: Path | None, right: Path | None
) -> tuple[str, dict[str, Any]]:
    """The model, and by the names of `Settings` what it is asked; beside a question file the other files may be missing."""
    from fastervlm.embedded import embedded_model
    from fastervlm.eval import get_task
    from fastervlm.eval.medium import Pictures

    task = get_task(name)
    asked: dict[str, Any] = {"task": task, "medium": Pictures()}
    if data is None and questions is not None:
        files = {"question_file": questions, "media_folder": images, "annotation_file": task.annotations(questions, right)}
        return model or str(embedded_model()), asked | files
    model, files = model_and_files(task, model, data, questions, images, right)
    return model, asked | files


def _submit(submission: Submission, settings: Settings) -> None:
    """Write what the benchmark's server takes beside the answers, if they are enough for it."""
    out = settings.answers_file.with_suffix(f".submission{submission.suffix}")
    try:
        write_submission(submission, settings.answers_file, settings.question_file, out)
    except UserError as error:
        print(f"Nothing to submit: {error}")


def _check(method: str | None, keep: object, overlay: Path | None) -> None:
    """Refuse, before the run, a method that prunes nothing, and a picture that could not be drawn or written after it."""
    from fastervlm.eval.answers import writable_file

    check_method(method, keep)
    if overlay and keep is None:
        raise UserError("--overlay saves what pruning kept; give --visual-token-num as well.")
    writable_file("--overlay", overlay, ".png")


def speed_lines(protocol: dict[str, Any]) -> list[str]:
    """How many visual tokens a question had, and how fast it went."""
    first, rate = protocol["mean_time_to_first_token_s"], protocol["samples_per_second"]
    if protocol["mean_visual_tokens"] is None:
        return []
    most = protocol["visual_token_num"]
    each = f", at most {most} a crop" if protocol.get("anyres") and isinstance(most, int) else ""
    each = f" about {protocol['num_frames']} frames" if "num_frames" in protocol else each
    before = protocol["mean_visual_tokens_unpruned"]
    kept = f"Visual tokens: {protocol['mean_visual_tokens']:.5g} of {before:.5g} a question{each}"
    if rate is None:
        return [kept]
    return [
        kept,
        f"Speed: {rate:.1f} samples/s, {1000 * first:.1f} ms to the first token of a batch of {protocol['batch_size']}",
    ]
