"""Attention efficiency of a model on questions: numbers, plots, and the maps of one question."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from encoders.errors import UserError
from fastervlm.analysis.answers import answer, read_again
from fastervlm.analysis.efficiency import GROUPS, QUERIES, AttentionEfficiency, token_groups
from fastervlm.eval.answerer import preparation
from fastervlm.eval.answers import writable_folder
from fastervlm.eval.preparation import Batch, prepared
from fastervlm.eval.protocol import circumstances
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.files import hash_files, write_json
from fastervlm.reporting.plots import Curve, Panel, draw_bars, draw_map, draw_panels
from fastervlm.reporting.progress import track

POOL = 20
LEAST_SHOWN = 7e-4  # the lower end of the colours of attention maps
_ASKED = {"all": "all queries", "answer": "answering queries"}
_SHOWN = {"allocation": "attention allocation", "efficiency": "attention efficiency"}


def attn_efficiency(subject: Subject, settings: Settings, out_dir: Path) -> dict[str, Any]:
    """Attention allocation and efficiency of each layer, averaged over questions, and the attention maps of the first one.

    Each question is answered greedily, then prompt and answer are read once more for the maps, of which one layer's is held
    at a time. Into `out_dir` go attn_efficiency.json and .png, layers/layer_<i>.png, attn_maps/atten_map_<i>.png (means over
    20 x 20 tokens, logarithmic) and output.json with the prompt, the picture and the answer that the maps show.

    Args:
        subject: the model; nothing is pruned.
        settings: the questions, how they are asked, and the longest answer.
        out_dir: where the results go; they appear when all questions are done.

    Returns:
        The content of attn_efficiency.json.

    Raises:
        UserError: a file is wrong, or there is no picture that can be read.
        UserTypeError: the language model is not supported.
    """
    asked = checked_questions(settings)
    questions = [question for question in asked if question.image]
    writable_folder(out_dir)
    prepare = preparation(subject, settings)
    reading = _Reading(subject, settings, questions, prepare.ask)
    with closing(prepared([[question] for question in questions], prepare, subject.processor)) as ready:
        for batch in track(ready, "questions", len(questions)):
            reading.add(batch)
    if reading.shown is None:
        raise UserError(f"{settings.question_file} has no question with a picture that can be read.")
    about = circumstances(subject, settings) | {
        "model": subject.name,
        "weights_sha256": subject.weights_sha256,
        "question_file_sha256": hash_files([settings.question_file]),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "without_picture": len(asked) - len(questions),
        "failures": reading.failures,
    }
    result = {**about, **reading.total.summary()}
    _write(result, reading, out_dir)
    return result


class _Reading:
    """What has been read so far: sums over questions, and the pooled maps of the first."""

    def __init__(self, subject: Subject, settings: Settings, questions: list[Question], ask: Callable[[Question], str]) -> None:
        self.subject, self.max_new_tokens, self.ask = subject, settings.longest_answer, ask
        self.asked = {each.line: {"question_id": each.question_id, "image": str(each.image)} for each in questions}
        self.total = AttentionEfficiency(subject.model.config.text_config.num_hidden_layers)
        self.failures: list[dict[str, Any]] = []
        self.shown: dict[str, Any] | None = None
        self.maps: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Answer one question and count its maps."""
        self.failures += [self.asked[line] | {"line": line, "reason": reason} for line, reason in batch.failures.items()]
        if batch.inputs is None:
            return
        model, tokenizer = self.subject.model, self.subject.processor.tokenizer
        answered = answer(model, batch.inputs, self.max_new_tokens)
        self.total.begin(token_groups(answered.ids, model.config.image_token_id, answered.prompt), answered.prompt)
        read_again(model, answered, self._see if self.shown is None else self.total.see)
        if self.shown is None:
            text = tokenizer.decode(answered.ids[answered.prompt :], skip_special_tokens=True)
            self.shown = {
                "prompt": self.ask(batch.questions[0]),
                "image": str(batch.questions[0].image),
                "output": [text.strip()],
            }

    def _see(self, layer: int, attention: Tensor) -> None:
        self.total.see(layer, attention)
        self.maps.append(pooled(attention[0]).cpu())


def pooled(attention: Tensor) -> Tensor:
    """A map (T, T) as means over 20 x 20 tokens, (ceil(T / 20), ceil(T / 20)); over those there are at its ends."""
    return F.avg_pool2d(attention[None], POOL, POOL, ceil_mode=True)[0]


def _write(result: dict[str, Any], reading: _Reading, folder: Path) -> None:
    for name in ("layers", "attn_maps"):
        writable_folder(folder / name)
    layers = result["layers"]
    for number, layer in enumerate(layers):
        bars = {f"{title}, {_ASKED['answer']}": layer["answer"][name] for name, title in _SHOWN.items()}
        draw_bars(bars, folder / "layers" / f"layer_{number}.png", f"Layer {number + 1}")
    for number, pool in enumerate(reading.maps):
        draw_map(pool.tolist(), folder / "attn_maps" / f"atten_map_{number}.png", f"Layer {number + 1}", LEAST_SHOWN)
    write_json(folder / "output.json", reading.shown)
    draw_panels([_panel(layers, query, name) for query in QUERIES for name in _SHOWN], folder / "attn_efficiency.png")
    write_json(folder / "attn_efficiency.json", result)


def _panel(layers: list[dict[str, Any]], query: str, name: str) -> Panel:
    numbers = [layer["layer"] + 1 for layer in layers]
    curves = [
        Curve(group, numbers, values)
        for group in GROUPS
        if None not in (values := [layer[query][name][group] for layer in layers])
    ]
    return Panel(
        f"{_SHOWN[name].capitalize()}, {_ASKED[query]}", "layer", _SHOWN[name], curves, log_x=False, log_y=name == "efficiency"
    )
