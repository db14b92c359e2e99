"""`fastervlm analyze`: what a language model does with visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastervlm.commands.common import (
    AspectRatio,
    ConvMode,
    Device,
    Dtype,
    OptionalImageFolder,
    OptionalModel,
    model_and_data,
    report_failures,
)

analyze = typer.Typer(help="Analyse what a model does with visual tokens.", no_args_is_help=True)


@analyze.callback()
def _group() -> None:
    """Keep the names of commands even while there is one only."""


@analyze.command("attn-efficiency")
def attn_efficiency(
    *,
    model: OptionalModel = None,
    question_file: Annotated[
        Path | None, typer.Option(help="Questions of a benchmark, or LLaVA conversations (.json or .jsonl).")
    ] = None,
    image_folder: OptionalImageFolder = None,
    task: Annotated[
        str, typer.Option(help="The benchmark whose questions these are, if they are no conversations.")
    ] = "textvqa",
    out_dir: Annotated[
        Path | None,
        typer.Option(help="Where the results go; analysis/attn-efficiency/MODEL beside the question file if left out."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Take only the first questions.")] = 100,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; the benchmark's own if left out.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    conv_mode: ConvMode = None,
    image_aspect_ratio: AspectRatio = None,
) -> None:
    """Attention allocation and efficiency of system prompt, image, instruction and output in each layer, and attention maps.

    Without a model and data it analyses the tiny model of this checkout on the mini benchmark.
    """
    from fastervlm.analysis import attn_efficiency as run
    from fastervlm.analysis.questions import CONVERSATIONS, is_conversations
    from fastervlm.eval import get_task
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject

    benchmark = get_task(task)
    model, data = model_and_data(model, question_file=question_file, image_folder=image_folder)
    subject = Subject(model, dtype, device)
    folder = out_dir or data["question_file"].parent / "analysis" / "attn-efficiency" / subject.name
    settings = Settings(
        task=CONVERSATIONS if is_conversations(data["question_file"]) else benchmark,
        answers_file=folder / "answers.jsonl",
        limit=limit,
        max_new_tokens=max_new_tokens,
        conv_mode=conv_mode,
        image_aspect_ratio=image_aspect_ratio,
        **data,
    )
    result = run(subject, settings, folder)
    print(f"Attention of {result['questions']} questions, {len(result['layers'])} layers.")
    print(f"Numbers and plots: {folder}/attn_efficiency.json, attn_efficiency.png, layers/layer_*.png")
    print(f"Attention maps of one question: {folder}/attn_maps/atten_map_*.png, output.json")
    report_failures(len(result["failures"]), result["failures"])
