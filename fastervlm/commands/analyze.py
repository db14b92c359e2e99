"""`fastervlm analyze`: what a language model does with visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastervlm.commands.common import (
    AnyresMode,
    AspectRatio,
    ConvMode,
    Device,
    Dtype,
    OptionalImageFolder,
    OptionalModel,
    clips,
    model_and_data,
    report_failures,
    resumable,
)
from fastervlm.commands.names import TASKS, completer, listed
from fastervlm.commands.numbers import WHOLE, whole

Questions = Annotated[Path | None, typer.Option(help="Questions of a benchmark, or LLaVA conversations (.json or .jsonl).")]
TaskOption = Annotated[
    str,
    typer.Option(
        help=f"The benchmark whose questions these are, if they are no conversations: {listed(TASKS)}.",
        autocompletion=completer(TASKS),
    ),
]
First = Annotated[int, typer.Option(help="Take only the first questions.", **whole(1))]
AttentionFolder = Annotated[
    Path | None, typer.Option(help="Where the results go; analysis/attention/MODEL beside the question file if left out.")
]

ShownFolder = Annotated[
    Path | None,
    typer.Option("--image-folder", "--video-dir", help="Folder of the pictures or clips named in the question file."),
]

analyze = typer.Typer(help="Analyse what a model does with visual tokens.", no_args_is_help=True)


@analyze.command("attn-efficiency")
def attn_efficiency(
    *,
    model: OptionalModel = None,
    question_file: Questions = None,
    image_folder: OptionalImageFolder = None,
    task: TaskOption = "textvqa",
    out_dir: Annotated[
        Path | None,
        typer.Option(help="Where the results go; analysis/attn-efficiency/MODEL beside the question file if left out."),
    ] = None,
    limit: First = 100,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; the benchmark's own if left out.", **WHOLE)
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
) -> None:
    """Attention allocation and efficiency of system prompt, image, instruction and output in each layer, and attention maps.

    Without a model and data it analyses the tiny model on the mini benchmark.
    """
    from fastervlm.analysis import attn_efficiency as run

    asked = {"limit": limit, "max_new_tokens": max_new_tokens, "conv_mode": conv_mode, "image_aspect_ratio": image_aspect_ratio}
    data = {"question_file": question_file, "image_folder": image_folder}
    subject, settings, folder = _asked("attn-efficiency", task, model, data, out_dir, asked, dtype=dtype, device=device)
    result = run(subject, settings, folder)
    print(f"Attention of {result['questions']} questions, {len(result['layers'])} layers.")
    print(f"Numbers and plots: {folder}/attn_efficiency.json, attn_efficiency.png, layers/layer_*.png")
    print(f"Attention maps of one question: {folder}/attn_maps/atten_map_*.png, output.json")
    report_failures(len(result["failures"]), result["failures"])


@analyze.command("attn-shift")
def attn_shift(
    *,
    model: OptionalModel = None,
    question_file: Questions = None,
    image_folder: ShownFolder = None,
    task: TaskOption = "textvqa",
    out_dir: AttentionFolder = None,
    limit: First = 100,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
    anyres: AnyresMode = "native",
) -> None:
    """Where each layer's attention to visual tokens goes, beside the [CLS] scores: maps, centre of mass, overlap.

    Without a model and data it analyses the tiny model on the mini benchmark. Nothing is pruned. Models for
    clips are asked the questions of a test_q.json.
    """
    from fastervlm.analysis.shift import attn_shift as run

    asked = {"limit": limit, "conv_mode": conv_mode, "image_aspect_ratio": image_aspect_ratio}
    data = {"question_file": question_file, "image_folder": image_folder}
    chosen = _asked("attention", task, model, data, out_dir, asked, anyres, dtype=dtype, device=device)
    _attention("shift", run, chosen, _shift_line, "attn_shift.html; numbers: attn_shift.json, attn_shift.npz; maps: *_attn/")


@analyze.command("attn-dispersion")
def attn_dispersion(
    *,
    model: OptionalModel = None,
    question_file: Questions = None,
    image_folder: ShownFolder = None,
    task: TaskOption = "textvqa",
    out_dir: AttentionFolder = None,
    limit: First = 100,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
    anyres: AnyresMode = "native",
) -> None:
    """How widely each layer's attention to visual tokens is spread, beside the [CLS] scores: curves, entropy, Gini.

    Without a model and data it analyses the tiny model on the mini benchmark. Nothing is pruned. Models for
    clips are asked the questions of a test_q.json.
    """
    from fastervlm.analysis.dispersion import attn_dispersion as run

    asked = {"limit": limit, "conv_mode": conv_mode, "image_aspect_ratio": image_aspect_ratio}
    data = {"question_file": question_file, "image_folder": image_folder}
    chosen = _asked("attention", task, model, data, out_dir, asked, anyres, dtype=dtype, device=device)
    _attention(
        "dispersion",
        run,
        chosen,
        _dispersion_line,
        "attn_dispersion.html; numbers: attn_dispersion.json, attn_dispersion.npz; curves: CDF.png",
    )


def _attention(
    what: str,
    run: Callable[..., dict[str, Any]],
    chosen: tuple[Any, Any, Path],
    line: Callable[[dict[str, Any]], str],
    files: str,
) -> None:
    """Analyse the attention that visual tokens get, and tell what came out."""
    subject, settings, folder = chosen
    with resumable():
        result = run(subject, settings, folder)
    print(f"Attention {what} of {result['questions']} questions, {result['layers']} layers.")
    for name, numbers in result["together"].items():
        print(f"  {name}: {line(numbers)}")
    print(f"To look at: {folder}/{files}")
    report_failures(len(result["failures"]), result["failures"])


def _asked(
    name: str,
    task: str,
    model: str | None,
    data: dict[str, Path | None],
    out_dir: Path | None,
    asked: dict[str, Any],
    anyres: Any = "native",
    **loaded: Any,
) -> tuple[Any, Any, Path]:
    """The model, the questions and how they are asked, and the folder of the results."""
    from fastervlm.analysis.questions import CONVERSATIONS, is_conversations
    from fastervlm.eval import get_task
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.families.llava_next.settings import Anyres

    benchmark = get_task(task)
    path, files = _data(model, data) if name == "attention" else model_and_data(model, **data)
    subject = Subject(path, **loaded, anyres=Anyres(anyres))
    questions = files["question_file"]
    folder = out_dir or questions.parent / "analysis" / name / subject.name
    chosen, medium = CONVERSATIONS if is_conversations(questions) else benchmark, Pictures()
    if name == "attention" and subject.asked_about == "video":
        medium = clips()
        (chosen,) = medium.tasks().values()
    return subject, Settings(chosen, answers_file=folder / "answers.jsonl", medium=medium, **files, **asked), folder


def _data(model: str | None, data: dict[str, Path | None]) -> tuple[str, dict[str, Any]]:
    """As `model_and_data`; the tiny model for clips has its mini benchmark too."""
    from fastervlm.embedded import VIDEO_MODEL, embedded_video_benchmark

    if model is None or any(data.values()) or Path(model).resolve() != VIDEO_MODEL:
        return model_and_data(model, **data)
    questions, _, videos = embedded_video_benchmark()
    return str(VIDEO_MODEL), {"question_file": questions, "media_folder": videos}


def _shift_line(numbers: dict[str, Any]) -> str:
    first, last = (numbers["layers"][layer]["last"] for layer in (0, -1))
    parts = [f"{name} {_form(first[key]['mean'])} to {_form(last[key]['mean'])}" for key, name in _FIRST_TO_LAST.items()]
    return f"last-token attention, first to last layer: {', '.join(parts)}; [CLS] centre {_form(numbers['cls_centre_of_mass'])}"


def _dispersion_line(numbers: dict[str, Any]) -> str:
    second = numbers["layers"][min(1, len(numbers["layers"]) - 1)]["last"]
    names = {"entropy": "entropy", "gini": "Gini", "top_share": "top tenth's share"}
    told = [f"{name} {_form(numbers['cls'][k]['mean'])} and {_form(second[k]['mean'])}" for k, name in names.items()]
    return f"[CLS] scores and last-token attention of the second layer: {', '.join(told)}"


_FIRST_TO_LAST = {"centre_of_mass": "centre of mass", "overlap_with_cls": "overlap with [CLS]"}


def _form(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
