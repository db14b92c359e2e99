"""`fastervlm serve`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.numbers import number, whole

# What the engine is told goes through this command as it was typed.
PASSING_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CKPT", help="Folder of the checkpoint, or its name on the hub, or tiny-llava."),
    ],
    *,
    keep: Annotated[str, typer.Option(help="Visual tokens kept of each picture or crop: a count (58) or a fraction (0.1).")],
    method: Annotated[
        str | None, typer.Option(help="A pruning method that needs no question, such as cls or visionzip; the model's own.")
    ] = None,
    newline: Annotated[
        Literal["all", "none"],
        typer.Option(help="Newline tokens that stay of a picture cut into crops (LLaVA-NeXT, LLaVA-OneVision)."),
    ] = "all",
    engine: Annotated[
        Literal["vllm", "transformers"] | None, typer.Option(help="Who runs the model; vLLM where it is installed.")
    ] = None,
    remember: Annotated[
        int,
        typer.Option(
            help="Pictures whose kept tokens are remembered, so that a second question about one needs no encoder; "
            "transformers alone.",
            **whole(0, 1_000_000),
        ),
    ] = 0,
) -> None:
    """Serve a pruned model to OpenAI clients, by vLLM or by transformers.

    Options that are not listed here go to the engine: --port 8000, --max-model-len 4096, --tensor-parallel-size 2. Clients call
    the model by the name given here. With vLLM a request may keep fewer tokens: mm_processor_kwargs {"visual_tokens": 29}.
    """
    from fastervlm.serving.options import Served
    from fastervlm.serving.vllm_server import has_vllm

    served = Served(number(keep, "--keep"), method, newline)
    if (engine or ("vllm" if has_vllm() else "transformers")) == "vllm":
        from fastervlm.serving.vllm_server import start

        if remember:
            raise UserError("--remember is for --engine transformers, because vLLM has a cache of its own; leave it out.")
        start(checkpoint, served, context.args)
    else:
        from fastervlm.serving.transformers_server import start

        start(checkpoint, served, context.args, remember)
