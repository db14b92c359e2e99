"""`fastervlm video-compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastervlm.commands.common import Device, Dtype, Limit, MethodNames, OptionalModel, names_of, resumable
from fastervlm.commands.compare import show
from fastervlm.commands.numbers import WHOLE, kept_of
from video.commands import Budget, KeepCls, NumFrames, Questions, Right, Size, VideoDir, benchmark


def video_compare(
    *,
    model: OptionalModel = None,
    question_file: Questions = None,
    answer_file: Right = None,
    video_dir: VideoDir = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Where answers, table and plot go; compare/MODEL beside the question file if left out.")
    ] = None,
    visual_token_num: Annotated[str, typer.Option(help="Budgets of a frame, separated by commas.")] = "256,128,64,26,13",
    methods: MethodNames = None,
    seeds: Annotated[int, typer.Option(help="Runs of a random method.", **WHOLE)] = 3,
    blind: Annotated[bool, typer.Option("--blind", help="Add the floor: every frame replaced by grey.")] = False,
    budget: Budget = "frame",
    keep_cls: KeepCls = False,
    num_frames: NumFrames = 8,
    batch_size: Size = 8,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Table and plot of accuracy and time to first token over visual tokens of a frame and methods.

    Without a model and data it compares the tiny video model on its mini benchmark.
    """
    from fastervlm.eval.compare import compare
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from video.scoring import VIDEO_QA
    from video.videos import Videos

    given = {"question_file": question_file, "annotation_file": answer_file, "media_folder": video_dir}
    path, files = benchmark(model, given)
    subject = Subject(path, dtype, device)
    folder = out_dir or files["question_file"].parent / "compare" / subject.name
    shared: dict[str, Any] = {"batch_size": batch_size, "limit": limit, **files}
    settings = Settings(
        VIDEO_QA, answers_file=folder / "all.jsonl", medium=Videos(num_frames, keep_cls=keep_cls, budget=budget), **shared
    )
    with resumable():
        comparison = compare(
            subject,
            settings,
            budgets=kept_of(visual_token_num),
            methods=None if methods is None else names_of(methods),
            out_dir=folder,
            seeds=seeds,
            blind=blind,
        )
    show(comparison, folder)
