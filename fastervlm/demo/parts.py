"""What stands on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from fastervlm.demo.engine import Engine
from fastervlm.demo.examples import Example, is_photograph, knows_scenes
from fastervlm.methods import METHODS
from fastervlm.reporting.speed import AGREE, RUNS

LONGEST_QUESTION, LONGEST_ANSWER = 1000, 256
_NOTE = (
    f"First token: from opening the file to the first token, encoder included; the median of {RUNS} runs of each model, which "
    "take turns in this process after a warm-up, with the least and the greatest. A difference is claimed where "
    f"{AGREE} of the {RUNS} pairs of runs agree. Tokens/s and KV cache are those of the answer that you read. For speed by "
    "budget, run fastervlm bench."
)
_LOOK = "Where the prompt's last token looks, in each layer of the full model, before it answers."
_UNKNOWN = (
    "The last {} are photographs. The tiny model has seen drawn scenes only and knows nothing of photographs: its answers "
    "about them mean nothing, but you see what it keeps."
)


@dataclass(frozen=True)
class Asked:
    """The parts that a user fills in, and the buttons."""

    picture: gr.Image | gr.Video
    question: gr.Textbox
    keep: gr.Slider
    method: gr.Dropdown
    beside: gr.Dropdown
    layer: gr.Slider
    short: gr.Checkbox
    longest: gr.Slider
    ask: gr.Button
    stop: gr.Button
    examples: gr.Gallery

    @property
    def settings(self) -> list[Any]:
        """Those with a value but the picture, in the order of `Events.ask`."""
        return [self.question, self.keep, self.method, self.beside, self.layer, self.short, self.longest]

    @property
    def values(self) -> list[Any]:
        """Those with a value."""
        return [self.picture, *self.settings]


@dataclass(frozen=True)
class Shown:
    """The parts that are filled by a turn; `known` says what the sweep and the attention are about."""

    answers: gr.HTML
    kept: gr.HTML
    sweep: gr.HTML
    attention: gr.HTML
    downloads: gr.HTML
    opacity: gr.Slider
    known: gr.State

    @property
    def results(self) -> list[Any]:
        """Those that are HTML."""
        return [self.answers, self.kept, self.sweep, self.attention, self.downloads]


def header(engine: Engine) -> None:
    """Name, what it does, and the model."""
    model = f"**{engine.subject.name}** on {engine.model.device}"
    gr.Markdown(f"# fastervlm\nAsk with all visual tokens, and with the few worth keeping. Model: {model}.", elem_id="fv-head")


def asked(engine: Engine, examples: Sequence[Example]) -> Asked:
    """The side where one asks."""
    file, question = examples[0] if examples else (None, None)
    choice = _choice(engine, file)
    gallery = _gallery(engine, examples)
    text = gr.Textbox(question, label="Question", lines=1, max_lines=4, max_length=LONGEST_QUESTION, placeholder="What is …?")
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", scale=3, min_width=120, elem_id="fv-ask")
        stop = gr.Button("Stop", scale=1, min_width=80, elem_id="fv-stop")
    part = " of each frame" if engine.shows_clips else " of each crop" if engine.subject.has_crops else ""
    kept = f"Visual tokens kept of {engine.count}{part}" if engine.count else "Visual tokens kept, %"
    keep = gr.Slider(1, engine.tokens, engine.budgets[-2], step=1, label=kept, elem_id="fv-keep")
    method = gr.Dropdown(list(METHODS), value=engine.usual_method, label="Method", filterable=False)
    beside = gr.Dropdown([("none", ""), *METHODS], value="", label="Method beside it", filterable=False)
    layer = gr.Slider(0, engine.layers - 1, min(2, engine.layers - 1), step=1, label="Layer", visible=False)
    with gr.Accordion("More", open=False):
        short = gr.Checkbox(True, label="Short answer", info="Adds LLaVA's request for a single word or phrase.")
        longest = gr.Slider(1, LONGEST_ANSWER, 64, step=1, label="Longest answer, in tokens")
    return Asked(choice, text, keep, method, beside, layer, short, longest, ask, stop, gallery)


def _gallery(engine: Engine, examples: Sequence[Example]) -> gr.Gallery:
    """The examples, and beside the tiny model an honest word about those it cannot know."""
    gallery = gr.Gallery(
        [(_thumbnail(engine, example), question) for example, question in examples],
        label="Examples",
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(examples),
        elem_id="fv-examples",
    )
    photographs = sum(is_photograph(file) for file, _ in examples)
    if photographs and knows_scenes(engine):
        gr.HTML(f"<p class='fv-note'>{_UNKNOWN.format(photographs)}</p>")
    return gallery


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
    gr.HTML('<p role="status"></p>', elem_id="fv-now")
    with gr.Tabs():
        with gr.Tab("Answers"):
            answers = gr.HTML("<p class='fv-note'>Choose, and ask.</p>", elem_id="fv-answers")
            kept = gr.HTML(elem_id="fv-kept")
            opacity = gr.Slider(0, 100, 65, step=1, label="Score map over the picture, %", elem_id="fv-opacity")
            sweep = gr.HTML(elem_id="fv-sweep")
            downloads = gr.HTML(elem_id="fv-downloads")
            gr.HTML(f"<p class='fv-note'>{_NOTE}</p>")
        with gr.Tab("Attention by layer"):
            gr.HTML(f"<p class='fv-note'>{_LOOK}</p>")
            attention = gr.HTML(elem_id="fv-attention")
    return Shown(answers, kept, sweep, attention, downloads, opacity, gr.State())
