"""What stands on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from fastervlm.demo.engine import Engine
from fastervlm.methods import METHODS

LONGEST_QUESTION, LONGEST_ANSWER = 1000, 256
_NOTE = (
    "The two models run one after the other in this process, after a warm-up. First token: from opening the file to the "
    "first token, encoder included. Tokens/s: those behind it. One run each, no benchmark."
)
_LOOK = "Where the prompt's last token looks, in each layer of the full model, before it answers."


@dataclass(frozen=True)
class Asked:
    """The parts that a user fills in, and the buttons."""

    picture: gr.Image | gr.Video
    question: gr.Textbox
    keep: gr.Slider
    method: gr.Dropdown
    layer: gr.Slider
    short: gr.Checkbox
    longest: gr.Slider
    ask: gr.Button
    stop: gr.Button
    examples: gr.Gallery

    @property
    def values(self) -> list[Any]:
        """Those with a value, in the order of `Events.ask`."""
        return [self.picture, self.question, self.keep, self.method, self.layer, self.short, self.longest]


@dataclass(frozen=True)
class Shown:
    """The parts that are filled by a turn; `known` says what the sweep and the attention are about."""

    answers: gr.HTML
    kept: gr.HTML
    sweep: gr.HTML
    attention: gr.HTML
    opacity: gr.Slider
    known: gr.State

    @property
    def results(self) -> list[Any]:
        """Those that are HTML."""
        return [self.answers, self.kept, self.sweep, self.attention]


def header(engine: Engine) -> None:
    """Name, what it does, and the model."""
    model = f"**{engine.subject.name}** on {engine.model.device}"
    gr.Markdown(f"# fastervlm\nAsk with all visual tokens, and with the few worth keeping. Model: {model}.", elem_id="fv-head")


def asked(engine: Engine, examples: Sequence[tuple[str, str]]) -> Asked:
    """The side where one asks."""
    file, question = examples[0] if examples else (None, None)
    choice = _choice(engine, file)
    gallery = gr.Gallery(
        [_thumbnail(engine, example) for example, _ in examples],
        label="Examples",
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(examples),
        elem_id="fv-examples",
    )
    text = gr.Textbox(question, label="Question", lines=1, max_lines=4, max_length=LONGEST_QUESTION, placeholder="What is …?")
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", scale=3, min_width=120)
        stop = gr.Button("Stop", scale=1, min_width=80, elem_id="fv-stop")
    part = " of each frame" if engine.shows_clips else " of each crop" if engine.subject.has_crops else ""
    counted = engine.subject.tokens_of(engine.medium.kind) is not None
    kept = f"Visual tokens kept of {engine.tokens}{part}" if counted else f"Visual tokens kept, in percent{part}"
    keep = gr.Slider(1, engine.tokens, engine.budgets[-2], step=1, label=kept, elem_id="fv-keep")
    method = gr.Dropdown(list(METHODS), value=engine.usual_method, label="Method", filterable=False)
    layer = gr.Slider(0, engine.layers - 1, min(2, engine.layers - 1), step=1, label="Layer", visible=False)
    with gr.Accordion("More", open=False):
        short = gr.Checkbox(True, label="Short answer", info="Adds LLaVA's request for a single word or phrase.")
        longest = gr.Slider(1, LONGEST_ANSWER, 64, step=1, label="Longest answer, in tokens")
    return Asked(choice, text, keep, method, layer, short, longest, ask, stop, gallery)


def _choice(engine: Engine, file: str | None) -> Any:
    """Where the picture or clip goes in."""
    same: dict[str, Any] = {"height": 420 if engine.shows_clips else 260, "buttons": [], "elem_id": "fv-in"}
    if engine.shows_clips:
        return gr.Video(file, label="Clip", sources=["upload", "webcam"], **same)
    return gr.Image(file, label="Picture", sources=["upload", "webcam", "clipboard"], **same)


def _thumbnail(engine: Engine, file: str) -> Any:
    """A picture itself, the first frame of a clip."""
    medium: Any = engine.medium
    return medium.frames(Path(file)).pixels[0] if engine.shows_clips else file


def shown() -> Shown:
    """The side where the answers are."""
    with gr.Tabs():
        with gr.Tab("Answers"):
            answers = gr.HTML("<p class='fv-note'>Choose, and ask.</p>", elem_id="fv-answers")
            kept = gr.HTML(elem_id="fv-kept")
            opacity = gr.Slider(0, 100, 65, step=1, label="Score map over the picture, %", elem_id="fv-opacity")
            sweep = gr.HTML(elem_id="fv-sweep")
            gr.HTML(f"<p class='fv-note'>{_NOTE}</p>")
        with gr.Tab("Attention by layer"):
            gr.HTML(f"<p class='fv-note'>{_LOOK}</p>")
            attention = gr.HTML(elem_id="fv-attention")
    return Shown(answers, kept, sweep, attention, opacity, gr.State())
