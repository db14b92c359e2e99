"""`fastervlm eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from encoders.errors import UserError
from fastervlm.commands.common import (
    AnyresMode,
    AspectRatio,
    BatchSize,
    Budget,
    ConvMode,
    Device,
    Dtype,
    ImageFolder,
    Limit,
    MaxNewTokens,
    ModelPath,
    Newline,
    QuestionFile,
    TaskName,
    number,
    report_failures,
    resumable,
)

Kept = Annotated[str | None, typer.Option(help="Visual tokens kept: a count (58) or a fraction (0.1); all if left out.")]
Overlay = Annotated[Path | None, typer.Option(help="Save a PNG of what was kept for the first question.")]


def evaluate(
    task: TaskName,
    *,
    model: ModelPath,
    question_file: QuestionFile,
    image_folder: ImageFolder,
    answers_file: Annotated[Path, typer.Option(help="Where the answers go (.jsonl).")],
    annotation_file: Annotated[
        Path | None, typer.Option(help="The right answers, if the question file does not hold them; without them no score.")
    ] = None,
    visual_token_num: Kept = None,
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
    overlay: Overlay = None,
) -> None:
    """Answer a benchmark's questions and score the answers."""
    from fastervlm.anyres import Anyres
    from fastervlm.eval import get_task
    from fastervlm.eval.overlay import save_overlay
    from fastervlm.eval.runner import evaluate as run
    from fastervlm.eval.settings import Settings, seeded
    from fastervlm.eval.subject import Subject

    benchmark = get_task(task)
    settings = Settings(
        task=benchmark,
        question_file=question_file,
        image_folder=image_folder,
        answers_file=answers_file,
        annotation_file=benchmark.annotations(question_file, annotation_file),
        keep=None if visual_token_num is None else number(visual_token_num),
        method=seeded(method, seed),
        batch_size=batch_size,
        limit=limit,
        conv_mode=conv_mode,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        image_aspect_ratio=image_aspect_ratio,
        seed=seed,
    )
    _check(method, settings.keep, overlay)
    subject = Subject(model, dtype, device, Anyres(anyres, newline, budget))
    with resumable():
        protocol, score = run(subject, settings)
    lines = [*(score.lines() if score else ["No score."]), *_speed_lines(protocol), f"Answers: {answers_file}"]
    print("\n".join(lines))
    if overlay and protocol["answered"]:
        save_overlay(subject, settings, overlay)
        print(f"Picture of the kept tokens: {overlay}")
    report_failures(protocol["failed"], protocol["failures"])


def _check(method: str, keep: int | float | None, overlay: Path | None) -> None:
    """Refuse, before the run, a method that prunes nothing, and a picture that could not be drawn or written after it."""
    from fastervlm.eval.answers import writable_folder

    if keep is None and method != "cls":
        raise UserError(f"--method {method} prunes nothing without a budget; give --visual-token-num as well.")
    if overlay is None:
        return
    if keep is None or overlay.suffix != ".png" or overlay.is_dir():
        raise UserError("--overlay saves what pruning kept; give it a .png file, and --visual-token-num as well.")
    writable_folder(overlay.parent)


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
