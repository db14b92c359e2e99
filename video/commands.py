"""`fastervlm video-qa`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.common import (
    Address,
    ConvMode,
    Device,
    Dtype,
    EngineName,
    Limit,
    MaxNewTokens,
    MethodName,
    OptionalModel,
    Workers,
    check_method,
    default_answers,
    engine_of,
    report_failures,
    resumable,
)
from fastervlm.commands.numbers import DECIMAL, WHOLE, kept

if TYPE_CHECKING:
    from fastervlm.eval.engine import Engine
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject

Video = Annotated[Path | None, typer.Option(help="One video file to ask about, with --question.")]
Asked = Annotated[str | None, typer.Option("--question", help="The question about it.")]
Questions = Annotated[Path | None, typer.Option(help="The questions of a benchmark (test_q.json).")]
Right = Annotated[Path | None, typer.Option(help="Its right answers (test_a.json); without them there is no score.")]
VideoDir = Annotated[Path | None, typer.Option(help="Folder of its videos.")]
AnswersFile = Annotated[Path | None, typer.Option("--answers-file", "--output", help="Where the answers go (.jsonl).")]
Kept = Annotated[str | None, typer.Option(help="Visual tokens kept of each frame: a count (64) or a fraction (0.25).")]
Budget = Annotated[
    Literal["frame", "clip"], typer.Option(help="Each frame keeps its own tokens, or the frames of a clip share their sum.")
]
KeepCls = Annotated[bool, typer.Option("--keep-cls", help="Keep the [CLS] token of each frame beside its patches.")]
NumFrames = Annotated[int, typer.Option(help="Frames that the model is shown of a video.", **WHOLE)]
Strategy = Annotated[Literal["uniform", "fps", "keyframes"], typer.Option(help="How they are chosen.")]
Start = Annotated[float | None, typer.Option(help="With --video: where to begin, in seconds.", **DECIMAL)]
End = Annotated[float | None, typer.Option(help="With --video: where to end, in seconds.", **DECIMAL)]
Sheet = Annotated[Path | None, typer.Option(help="Save a PNG of the frames (of a benchmark's first video) and what was kept.")]
Size = Annotated[int, typer.Option("--batch-size", help="Questions answered at a time.", **WHOLE)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", **DECIMAL)]
Seed = Annotated[int, typer.Option(help="Of a random method and of sampling.", **WHOLE)]


def video_qa(
    *,
    model: OptionalModel = None,
    video: Video = None,
    question: Asked = None,
    question_file: Questions = None,
    answer_file: Right = None,
    video_dir: VideoDir = None,
    answers_file: AnswersFile = None,
    visual_token_num: Kept = None,
    method: MethodName = None,
    budget: Budget = "frame",
    keep_cls: KeepCls = False,
    num_frames: NumFrames = 8,
    strategy: Strategy = "uniform",
    start: Start = None,
    end: End = None,
    sheet: Sheet = None,
    batch_size: Size = 8,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Answer a question about a video file, or the questions of a benchmark, with pruned frames.

    Without a model and data the tiny video model answers its mini benchmark.
    """
    from fastervlm.eval.settings import Settings, chosen
    from fastervlm.eval.subject import Subject
    from video.scoring import VIDEO_QA
    from video.videos import Videos

    check(method, visual_token_num, sheet, keep_cls or budget != "frame")
    data = {"question_file": question_file, "annotation_file": answer_file, "media_folder": video_dir}
    if video is None and question is None:
        refuse_range(start, end)
        model, files = benchmark(model, data)
        files["answers_file"] = answers_file or default_answers(files["question_file"], model, method, visual_token_num)
    else:
        model, files = model or str(tiny_model()), one_file(video, question, [*data.values(), answers_file], engine, limit)
    budgeted = None if visual_token_num is None else kept(visual_token_num)
    pruning: dict[str, Any] = {"keep": budgeted, "batch_size": batch_size, "limit": limit} | chosen(method, seed)
    asking = {"conv_mode": conv_mode, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    settings = Settings(
        VIDEO_QA,
        medium=Videos(num_frames, strategy, start, end, keep_cls, budget),
        **(files | pruning | asking),
    )
    answering, subject = engine_of(engine, workers, address), Subject(model, dtype, device)
    if question is not None:
        return answer_one(subject, settings, question, sheet)
    return answer_all(subject, settings, answering, sheet)


def benchmark(model: str | None, data: dict[str, Path | None]) -> tuple[str, dict[str, Any]]:
    """The model and the files of a benchmark as given, or the tiny model and its own."""
    from fastervlm.embedded import VIDEO_MODEL, embedded_video_benchmark

    given = {name: path for name, path in data.items() if path is not None}
    if "question_file" in given and "media_folder" in given:
        return model or str(tiny_model()), given
    if given or (model is not None and Path(model).resolve() != VIDEO_MODEL):
        raise UserError(
            "Give --video and --question, or --question-file and --video-dir, or neither model nor data for the tiny model."
        )
    return str(tiny_model()), dict(
        zip(("question_file", "annotation_file", "media_folder"), embedded_video_benchmark(), strict=True)
    )


def one_file(
    video: Path | None, question: str | None, others: list[Path | None], engine: str, limit: int | None
) -> dict[str, Any]:
    """Where one video is, in the settings' words."""
    if engine != "local":
        raise UserError(f"--engine {engine} answers a benchmark; leave it out for one video.")
    if video is None or question is None:
        raise UserError("Give --video and --question together.")
    if any(path is not None for path in others):
        raise UserError("--video asks about one file; leave out the files of a benchmark, or --video and --question.")
    if limit is not None:
        raise UserError("--limit is for the questions of a benchmark; leave it out for one video.")
    if not video.name:
        raise UserError(f"--video {video} is not a file; give the path of a video file.")
    return {"question_file": video, "media_folder": video.parent, "answers_file": video.with_suffix(".jsonl")}


def refuse_range(start: float | None, end: float | None) -> None:
    """A benchmark's videos are not cut."""
    if start is not None or end is not None:
        raise UserError("--start and --end cut one video; give --video and --question as well, or leave them out.")


def tiny_model() -> Path:
    """The folder of the tiny video model."""
    from fastervlm.embedded import VIDEO_MODEL, embedded_model

    return embedded_model(VIDEO_MODEL)


def check(method: str | None, kept: str | None, sheet: Path | None, of_pruning: bool) -> None:
    """Refuse, before the run, options `of_pruning` where nothing is pruned, and a picture that cannot be written after it."""
    from fastervlm.eval.answers import writable_file

    check_method(method, kept)
    if kept is None and of_pruning:
        raise UserError("--keep-cls and --budget clip are for pruned frames; give --visual-token-num as well.")
    writable_file("--sheet", sheet, ".png")


def answer_one(subject: Subject, settings: Settings, question: str, sheet: Path | None) -> None:
    """Answer a question about one file and say what the answer rests on."""
    from video.qa import ask, save_sheet
    from video.sheet import time_of

    found = ask(subject, settings, settings.question_file, question)
    times = ", ".join(map(time_of, found.frames.times))
    left, before = found.visual_tokens
    print(f"{found.text}\n\nFrames: {len(found.frames.times)} at {times}\nVisual tokens: {left:.5g} of {before}")
    if sheet:
        save_sheet(found, sheet)
        print(f"Contact sheet: {sheet}")


def answer_all(subject: Subject, settings: Settings, engine: Engine | None, sheet: Path | None) -> None:
    """Answer a benchmark, print score and speed, and fail if a question did."""
    from fastervlm.commands.evaluate import speed_lines
    from video.qa import ask_first, predictions_file, run, save_sheet

    with resumable():
        protocol, score = run(subject, settings, engine)
    lines = [*(score.lines() if score else ["No score."]), *speed_lines(protocol), f"Answers: {settings.answers_file}"]
    if settings.annotation_file is not None:
        lines.append(f"For the reference's evaluation: {predictions_file(settings.answers_file)}")
    print("\n".join(lines))
    if sheet and protocol["answered"]:
        save_sheet(ask_first(subject, settings), sheet)
        print(f"Contact sheet of the first video: {sheet}")
    report_failures(protocol["failed"], protocol["failures"])
