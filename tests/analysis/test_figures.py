"""What the figures of the analyses draw, against the numbers beside them, and what runs say."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from encoders import UserError
from fastervlm.analysis import KINDS, attn_dispersion, attn_shift, examples, reading
from fastervlm.analysis.figures import COLOURS, EVEN, NAMES
from fastervlm.analysis.questions import CONVERSATIONS
from fastervlm.reporting import progress
from tests.support.analysis_runs import asked


@pytest.fixture
def figures(monkeypatch):
    """What was drawn: matplotlib's figure by the end of its path."""
    drawn = {}

    def keep(figure, path, *_):
        drawn["/".join(path.parts[-3:])] = drawn[path.name] = figure
        Image.new("RGB", (4, 4)).save(path)

    monkeypatch.setattr("fastervlm.analysis.figures.save_figure", keep)
    return drawn


def by_title(figure, start):
    """The axes whose title begins so."""
    (found,) = (axes for axes in figure.axes if axes.get_title().startswith(start))
    return found


def test_the_story_and_the_maps_show_what_they_say(subject, settings, tmp_path, figures):
    out = tmp_path / "out"
    attn_shift(subject, asked(settings), out)
    numbers = np.load(out / "attn_shift.npz")
    story = figures["attn_shift.png"]
    for kind in ("last", "full"):
        values = numbers[f"picture/attention/{kind}"]
        strip = by_title(story, f"Attention {NAMES[kind]}, by layer" if kind == "last" else f"Attention {NAMES[kind]}")
        relative = values / values.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(strip.images[0].get_array(), relative, rtol=1e-6)
        assert strip.images[0].norm.vmax == EVEN
        centres = numbers[f"picture/centre_of_mass/{kind}"]
        np.testing.assert_allclose(strip.lines[0].get_xdata(), centres * (values.shape[1] - 1) + 0.5)
    shown = by_title(story, "Attention from the last token,\nmean").images[0].get_array()
    np.testing.assert_allclose(shown.ravel(), numbers["picture/attention/last"].mean(axis=0))
    for kind in KINDS:
        for layer in (0, 1):
            values, name = numbers[f"picture/attention/{kind}"][layer], f"layer_{layer}.png"
            spread, grid = (figures[f"{kind}_attn/{what}/{name}"].axes[0] for what in ("dist", "map"))
            np.testing.assert_allclose(spread.patches[0].get_data().values, values)
            np.testing.assert_allclose(grid.images[0].get_array().ravel(), values)
            assert spread.get_title() == grid.get_title() == f"Layer {layer + 1}: attention {NAMES[kind]}"
        shown = [axes.images[0].get_array().ravel() for axes in figures[f"out/{kind}_attn/layers.png"].axes]
        np.testing.assert_allclose(shown, numbers[f"picture/attention/{kind}"])


def test_the_curves_show_what_they_say(subject, settings, tmp_path, figures):
    out = tmp_path / "out"
    attn_dispersion(subject, asked(settings), out)
    numbers = np.load(out / "attn_dispersion.npz")
    drawn = {line.get_label(): line.get_ydata() for line in figures["CDF.png"].axes[0].lines}
    expected = {"[CLS] attn": numbers["picture/curve/cls"], "last attn": numbers["picture/curve/last"][1]}
    for name, curve in expected.items():
        np.testing.assert_allclose(drawn[name], np.r_[0, curve * 100])
    drawn = {line.get_label(): line.get_ydata() for line in figures["CDF_layers.png"].axes[0].lines}
    for layer in (0, 1):
        np.testing.assert_allclose(drawn[f"layer {layer + 1}"][1:], numbers["picture/curve/last"][layer] * 100)
    for title, name in (("Entropy", "entropy"), ("Gini", "gini"), ("Share", "top_share")):
        lines = {line.get_color(): line.get_ydata() for line in by_title(figures["attn_dispersion.png"], title).lines}
        for kind in KINDS:
            np.testing.assert_allclose(lines[COLOURS[kind]], numbers[f"picture/{name}/{kind}"])


def test_examples_show_what_their_names_say(subject, settings, tmp_path, monkeypatch):
    read = reading.read_questions(subject, asked(settings, limit=2), tmp_path / "out")
    saved = {}

    class Drawn:
        def __init__(self, _, trace, **__):
            self.trace = trace

        def save(self, path, **_):
            saved[path.name] = self.trace

    monkeypatch.setattr(examples, "overlay", Drawn)
    (line, *_), _ = examples.extremes(read)
    examples.draw_examples(read, tmp_path / "out" / "examples")
    _, received = read.again(line)
    for by, values in (("cls", received.scores[0]), ("last", received.attention[:, KINDS.index("last")].mean(dim=0))):
        trace = saved[f"strongest_1_{by}.jpg"]
        assert trace.scores.tolist() == pytest.approx(values.tolist())
        assert trace.index.tolist() == sorted(values.topk(2).indices.tolist())


def test_progress_ends_at_all_questions_after_a_resume(subject, settings, tmp_path, monkeypatch):
    chosen, out = asked(settings), tmp_path / "out"
    receive, read = reading.receive, []

    def stops(*given, **options):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(1)
        return receive(*given, **options)

    monkeypatch.setattr(reading, "SECONDS", 0)
    monkeypatch.setattr(reading, "receive", stops)
    with pytest.raises(KeyboardInterrupt):
        reading.read_questions(subject, chosen, out)
    monkeypatch.setattr(reading, "receive", receive)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(reading, "console", console)
    monkeypatch.setattr(progress, "console", console)
    reading.read_questions(subject, chosen, out)
    assert "Reading 2 questions" in stream.getvalue()
    assert "4/4" in stream.getvalue().splitlines()[-2:][0]


def test_sentences_where_there_is_nothing_to_read_or_another_run(subject, settings, tmp_path, capsys):
    path, out = tmp_path / "mix.json", tmp_path / "out"
    path.write_text(json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "Why?"}]}]))
    with pytest.raises(UserError, match=r"mix\.json has no question with a picture or clip\.$"):
        attn_shift(subject, replace(asked(settings), task=CONVERSATIONS, question_file=path), out)
    assert "read already" not in capsys.readouterr().err
    reading.read_questions(subject, asked(settings, limit=2), out)
    with pytest.raises(UserError, match=r"limit is 2 there and 1 now; give another --out-dir \(OUT of the scripts\) or remove"):
        reading.read_questions(subject, asked(settings, limit=1), out)
