"""The page of the demo: Gradio's parts, and what happens when they are touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fastervlm.demo import parts, views
from fastervlm.demo.engine import Engine
from fastervlm.demo.events import Events

STYLE = Path(__file__).with_name("style.css")
MOST_WAITING = 16
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
_LOOK: dict[str, Any] = {"concurrency_limit": 4, "show_progress": "hidden"}  # in the queue, without which there are no messages
_LIGHT: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_OPACITY = "value => { document.documentElement.style.setProperty('--fv-opacity', value / 100); }"


def build(engine: Engine, examples: Sequence[tuple[str, str]] = ()) -> gr.Blocks:
    """The page over an engine; `examples` are pictures' files with questions, of which the first is there at the start."""
    with gr.Blocks(analytics_enabled=False, title="fastervlm", delete_cache=(3600, 3600)) as blocks:
        parts.header(engine)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                asked = parts.asked(engine, examples)
            with gr.Column(scale=3, min_width=320):
                shown = parts.shown()
        _connect(Events(engine, examples), asked, shown)
    return blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def _connect(events: Events, asked: parts.Asked, shown: parts.Shown) -> None:
    """What happens when a part is touched; one turn at a time has the model, all others wait."""
    inputs, outputs = [*asked.values, shown.known], [*shown.results, shown.known]
    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}  # Gradio would decode pictures, sound or not
    started: dict[str, Any] = {"fn": events.ask, "inputs": inputs, "outputs": outputs, **_MODEL, **private}
    picked: dict[str, Any] = started | {"trigger_mode": "always_last"}
    moved = started | {"fn": events.ask_again, "trigger_mode": "always_last"}
    turns: list[Any] = [
        asked.ask.click(**started),
        asked.question.submit(**started),
        asked.keep.change(**moved),
        asked.layer.change(**moved),
        asked.method.input(events.show_layer, asked.method, asked.layer, **_LIGHT, **private).then(**moved),
        asked.examples.select(events.pick, None, [asked.picture, asked.question], **_LIGHT, **private).then(**picked),
    ]
    asked.stop.click(None, cancels=turns, api_visibility="private")
    asked.stop.click(views.stopped, shown.answers, shown.answers, **_LIGHT, **private)
    asked.picture.change(events.look_at, asked.picture, [asked.picture, *outputs], **_LOOK, **private)
    asked.picture.input(None, cancels=turns, api_visibility="private")
    asked.picture.input(events.forget, None, outputs, **_LIGHT, api_visibility="private")
    shown.opacity.change(None, shown.opacity, js=_OPACITY, api_visibility="private")
