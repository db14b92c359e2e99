"""`fastervlm demo`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fastervlm.commands.common import Device, Dtype, OptionalModel, clips
from fastervlm.commands.numbers import whole
from fastervlm.reporting.extras import need


def demo(
    *,
    model: OptionalModel = None,
    dtype: Dtype = None,
    device: Device = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen at, 0 for any free one; the first free from 7860 on if left out.", **whole(0, 65535)),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also make a public address, through Gradio's servers.")] = False,
) -> None:
    """Open the demo in a browser: a question about a picture, answered with all visual tokens and with a few, side by side.

    Without a model it shows the tiny model that ships.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    need("gradio", "demo", "The demo")
    from fastervlm.demo.engine import Engine
    from fastervlm.demo.examples import examples_for
    from fastervlm.demo.serve import port_at, serve
    from fastervlm.demo.uploads import CLIP_LIMITS
    from fastervlm.embedded import embedded_model
    from fastervlm.eval.subject import Subject

    port = port_at(host, port)  # before the model is loaded
    subject = Subject(model or str(embedded_model()), dtype, device)
    engine = Engine(subject, clips(**CLIP_LIMITS) if subject.asked_about == "video" else None)
    serve(engine, examples_for(engine), host=host, port=port, share=share)
