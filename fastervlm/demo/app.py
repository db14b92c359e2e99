"""The page of the demo: Gradio's parts, and what happens when they are touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fastervlm.demo import parts, views
from fastervlm.demo.engine import Engine
from fastervlm.demo.events import Events
from fastervlm.demo.examples import Example
from fastervlm.demo.foreign import SoundBlocks

STYLE, SCRIPT = (Path(__file__).with_name(name) for name in ("style.css", "page.js"))
MOST_WAITING = 16
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
_LOOK: dict[str, Any] = {"concurrency_limit": 4, "show_progress": "hidden"}  # in the queue, without which there are no messages
_LIGHT: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_OPACITY = "value => { document.documentElement.style.setProperty('--fv-opacity', value / 100); }"
_BEGIN, _END, _SETTINGS = "() => fv.begin()", "() => fv.end()", "(...values) => fv.settings(...values)"


def build(engine: Engine, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The page over an engine; `examples` are pictures' files with questions, of which the first is there at the start."""
    with SoundBlocks(analytics_enabled=False, title="fastervlm", delete_cache=(3600, 3600)) as blocks:
        parts.header(engine)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                asked = parts.asked(engine, examples)
            with gr.Column(scale=3, min_width=320, elem_id="fv-results"):
                shown = parts.shown()
        _connect(Events(engine, examples), asked, shown)
        _look_after(blocks, Events(engine, examples), asked, shown)
    return blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def _connect(events: Events, asked: parts.Asked, shown: parts.Shown) -> None:
    """What happens when one asks, stops or brings a file; one turn at a time has the model, all others wait."""
    inputs, outputs = [*asked.values, shown.known], [*shown.results, shown.known]
    quiet: dict[str, Any] = {**_PRIVATE, "preprocess": False}  # Gradio would decode pictures, sound or not
    started: dict[str, Any] = {"fn": events.ask, "inputs": inputs, "outputs": outputs, **_MODEL, **quiet}
    started["trigger_mode"] = "always_last"  # who asks while a turn runs is answered after it, once
    for start in (asked.ask.click, asked.question.submit, asked.examples.select):
        start(None, js=_BEGIN, **_PRIVATE)  # before the turn: what an event starts is started one after the other
    turns: list[Any] = [
        asked.ask.click(**started),
        asked.question.submit(**started),
        asked.examples.select(events.pick, None, [asked.picture, asked.question], **_LIGHT, **quiet).then(**started),
    ]
    for turn in turns:
        turn.then(None, js=_END, **_PRIVATE)
    asked.stop.click(None, cancels=turns, **_PRIVATE)
    asked.stop.click(views.stopped, shown.answers, shown.answers, **_LIGHT, **quiet).then(None, js=_END, **_PRIVATE)
    asked.picture.change(events.look_at, asked.picture, [asked.picture, *outputs], **_LOOK, **quiet)
    asked.picture.input(None, cancels=turns, **_PRIVATE)
    asked.picture.input(events.forget, None, outputs, **_LIGHT, **_PRIVATE).then(None, js=_END, **_PRIVATE)


def _look_after(blocks: gr.Blocks, events: Events, asked: parts.Asked, shown: parts.Shown) -> None:
    """What the page does by itself: it brings settings back from its address, and knows which settings the numbers are of."""
    restored = blocks.load(events.restore, None, asked.values, **_LOOK, **_PRIVATE)
    restored.then(None, asked.settings, js=_SETTINGS, **_PRIVATE).then(None, js="() => fv.asksAtOnce()", **_PRIVATE)
    for part in asked.settings:
        part.change(None, asked.settings, js=_SETTINGS, **_PRIVATE)
    for part in (asked.method, asked.beside):
        part.input(events.show_layer, [asked.method, asked.beside], asked.layer, **_LIGHT, **_PRIVATE, preprocess=False)
    shown.opacity.change(None, shown.opacity, js=_OPACITY, **_PRIVATE)
