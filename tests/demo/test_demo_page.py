"""What the page shows and does, without a browser."""

import base64
import csv
import html
import io
import json
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import pytest

import fastervlm.cli as cli
from encoders import UserError
from fastervlm.demo import pictures, views
from fastervlm.demo.answers import Answers, Ask, Figures, Pruned, Reply, has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.events import Events
from fastervlm.demo.links import link_to, restored
from fastervlm.demo.serve import serve
from fastervlm.methods import METHODS

FULL = Figures(visual_tokens=576, rate=20.0, cache_bytes=2_000_000)
FEW = Figures(visual_tokens=58, rate=None, cache_bytes=500_000)
NASTY = '<script>alert(1)</script> & "more"'


def values(
    path, *, question: Any = "What?", keep: Any = 4, method: Any = "cls", beside="", layer: Any = 0, longest=4, known=None
):
    """What the page sends, in its order."""
    return ({"path": str(path)} if path else None, question, keep, method, beside, layer, True, longest, known)


def amount(keep):
    """As an engine puts it."""
    return f"{keep} of 576"


def answered(full, few, texts=("a", "a"), figures=(FULL, FEW), more=()):
    """Answers with these times of the full and the pruned model."""
    pruned = [Pruned("cls", Reply(58, texts[1], figures[1], tuple(few)))]
    pruned += [Pruned(name, Reply(58, texts[1], figures[1], tuple(times))) for name, times in more]
    return Answers(Reply(None, texts[0], figures[0], tuple(full)), tuple(pruned))


@pytest.fixture
def events(engine, tmp_path, monkeypatch):
    """The handlers over the tiny model; what lies in the test's folder was handed in."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return Events(engine, [])


def test_texts_of_users_and_models_are_escaped():
    shown = Pruned("cls", Reply(4, NASTY, FULL), UserError(NASTY), (Reply(4, NASTY, FULL),))
    pages = [
        views.answers(Answers(Reply(None, NASTY, FULL), (shown,)), amount, [NASTY], NASTY),
        views.sweep((shown,), NASTY),
        pictures.attention(UserError(NASTY)),
        pictures.kept((shown,)),
    ]
    assert all("<script" not in page for page in pages)
    assert all("&lt;script&gt;" in page for page in pages)


SLOW, QUICK = [0.4] * 7, [0.1] * 7


@pytest.mark.parametrize(
    ("full", "few", "said"),
    [
        (SLOW, QUICK, "First token 4.0× as fast</b> <small>(4.0 to 4.0 in 7 runs)"),
        (QUICK, SLOW, "First token slower, 0.2× as fast</b> <small>(0.2 to 0.2 in 7 runs)"),
        (SLOW, [0.4, 0.41, 0.39, 0.4, 0.4, 0.38, 0.4], "First token no faster</b> <small>(1.0×; 1.0 to 1.1 in 7 runs)"),
        (SLOW, [0.385] * 7, "First token no faster</b> <small>(1.0×; 1.0 to 1.0 in 7 runs)"),  # 4 % are no difference
        ([0.4] * 6 + [0.1], [0.2] * 7, "First token 2.0× as fast</b> <small>(0.5 to 2.0 in 7 runs)"),  # one outlier
        ([0.4] * 5 + [0.1] * 2, [0.2] * 7, "First token not clearly faster</b> <small>(2.0×; 0.5 to 2.0 in 7 runs)"),
        ([0.1] * 5 + [0.4] * 2, [0.2] * 7, "First token no faster</b> <small>(0.5×; 0.5 to 2.0 in 7 runs)"),
    ],
)
def test_a_headline_says_what_the_runs_show(full, few, said):
    assert said in views.answers(answered(full, few), amount)


def test_what_pruning_saved():
    page = views.answers(answered(SLOW, [0.09, 0.1, 0.11, 0.1, 0.1, 0.1, 0.1]), amount)
    for part in ("75% of the KV cache saved", "same answer", "Pruned by cls to 58 of 576", "400 ms", "100 ms", "90–110", "–<"):
        assert part in page
    more = views.answers(answered(SLOW, QUICK, texts=("a", "b"), figures=(FEW, FULL)), amount)
    assert "KV cache 300% larger" in more
    assert "another answer" in more
    assert "no KV cache saved" in views.answers(answered(SLOW, QUICK, figures=(FULL, FULL)), amount)
    both = views.answers(answered(SLOW, QUICK, more=[("fastv", [0.2] * 7)]), amount)
    assert "cls: First token 4.0× as fast" in both
    assert "fastv: First token 2.0× as fast" in both


@pytest.mark.parametrize("runs", range(7))
def test_nothing_is_claimed_before_all_runs_are_done(runs):
    page = views.answers(answered(SLOW[:runs], QUICK[:runs]), amount)
    assert "as fast" not in page
    assert " ms" not in page
    assert page.count(f"run {runs + 1} of 7") == 2


def test_patches_are_told_to_the_page(engine, asked):
    """What the page reads when one points at a patch."""
    shown = list(answers(engine, asked(), more=False))[-1]
    (told,) = re.findall(r'data-patches="([^"]+)"', pictures.kept(shown.pruned))
    ((patches,),) = json.loads(html.unescape(told))
    box, grid, scores, ranks, ranked, kept = patches
    assert (box, grid, ranked) == ([0, 0, 1, 1], [4, 4], 16)
    assert sorted(ranks) == list(range(1, 17))
    assert sorted(range(16), key=lambda i: ranks[i])[:4] == sorted(kept, key=lambda i: ranks[i])
    assert scores == pytest.approx(shown.pruned[0].drawn.patches[0][0].scores, rel=0.006)  # type: ignore[union-attr]


def test_one_picture_for_all_layers(engine, asked):
    """A block sends its picture once, however many maps lie over it."""
    page = pictures.attention(list(answers(engine, asked()))[-1].attention)
    assert page.count("data:image/png") == engine.layers
    assert page.count("data:image/jpeg") == 1


def test_one_turn_fills_the_page(events, picture):
    updates = list(events.ask(*values(picture())))
    known = updates[-1][-1]
    assert known.about.keep == 0
    assert all(any(isinstance(update[i], str) and "fv-" in update[i] for update in updates) for i in range(5))
    assert 'data-step=""' in updates[-1][0]
    assert all('data-step=""' not in update[0] for update in updates[:-1])
    again = list(events.ask(*values(picture(), keep=8, known=known)))
    assert not any(isinstance(update[i], str) for update in again for i in (2, 3))
    assert "Pruned by cls to 8 of 16" in again[-1][0]
    assert len(taken_home(again, "json")["answers"]) == 2 + 5  # the sweep of the first turn
    other = list(events.ask(*values(picture(), question="Why?", known=known)))
    assert any(isinstance(update[2], str) and "Why?" in update[2] for update in other)


def taken_home(updates, kind) -> Any:
    """What the links hand over in the end."""
    (data,) = re.findall(rf'download="fastervlm.{kind}" href="data:[^;]+;base64,([^"]+)"', updates[-1][4])
    text = base64.b64decode(data).decode()
    return json.loads(text) if kind == "json" else list(csv.DictReader(io.StringIO(text)))


def test_numbers_to_take_home(engine, events, picture):
    updates = list(events.ask(*values(picture(), question="Why, and\nwhy?", beside="fastv", layer=1)))
    told, lines = taken_home(updates, "json"), taken_home(updates, "csv")
    assert (told["question"], told["layer"], told["visual_tokens"]) == ("Why, and\nwhy?", 1, 16)
    assert [(each["kind"], each["method"], each["keep"]) for each in told["answers"]] == [
        ("answer", None, None),
        ("answer", "cls", 4),
        ("answer", "fastv", 4),
        *(("sweep", method, keep) for method in ("cls", "fastv") for keep in engine.budgets),
    ]
    assert [len(each["first_token_seconds"]) for each in told["answers"]] == [7] * 3 + [0] * 10
    assert len(told["attention"]) == engine.layers
    assert [line["answer"] for line in lines] == [each["answer"] for each in told["answers"]]
    for line, each in zip(lines, told["answers"], strict=True):
        median = sorted(each["first_token_seconds"])[3] * 1000 if each["first_token_seconds"] else None
        assert line["first_token_ms"] == ("" if median is None else str(round(median, 2)))
        assert line["visual_tokens"] == str(each["visual_tokens"])


def test_a_link_brings_all_settings_back(engine, picture, tmp_path):
    examples = [(str(picture("first.png")), "What?"), (str(picture("second one.png")), "Why?")]
    copied = tmp_path / "copies" / "second one.png"  # as Gradio keeps what a page shows
    copied.parent.mkdir()
    copied.write_bytes(Path(examples[1][0]).read_bytes())
    asked = Ask(copied, "Is 1 + 1 = 2 & more?\nYes", 7, "fastv", "cls", 1, False, 33)
    link = link_to(asked, examples)
    told = dict(parse_qsl(link.removeprefix("?"), keep_blank_values=True))
    file, question, keep, method, beside, layer, short, longest = restored(told, engine, examples)
    assert (file, question, keep, method, beside) == (examples[1][0], asked.question, 7, "fastv", "cls")
    assert (layer["value"], short, longest) == (1, False, 33)
    mine = link_to(replace(asked, picture=picture("first.png"), beside=None, layer=None), examples[1:])
    assert "picture=&" in mine
    assert "layer" not in mine
    picture("second one.png").write_bytes(b"another picture of that name")
    assert "picture=&" in link_to(asked, examples)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({}, None),
        ({"__theme": "dark", "picture": "none"}, None),
        ({"keep": "17"}, "keep"),
        ({"keep": "\u0664"}, "keep"),
        ({"keep": "9" * 5000}, "keep"),
        ({"keep": "4", "picture": "../../etc/passwd", "method": "best"}, "picture and a method"),
        ({"keep": "4", "layer": "-1", "short": "2", "longest": "0"}, "layer and a short and a longest"),
    ],
)
def test_what_a_link_has_wrong_is_left_out(engine, monkeypatch, told, wrong):
    said = []
    monkeypatch.setattr(gr, "Warning", said.append)
    values = restored(told, engine, [])
    right = {"keep": 4} if told.get("keep") == "4" else {}
    assert [value for value in values if value != gr.skip()] == list(right.values())
    assert said == ([] if wrong is None else [f"The link has a {wrong} that is not known here; check the settings."])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"path": None}, "Choose a picture first."),
        ({"question": " "}, "Type a question first."),
        *(({"keep": keep}, "Choose 1 to 16 tokens.") for keep in (0, -5, 9999, None, float("nan"), "4", 12.7, True)),
        *(({"longest": longest}, "Choose 1 to 256 tokens for the longest answer.") for longest in (0, 257, None)),
        ({"method": "best"}, "no method named"),
        ({"beside": "best"}, "no method named"),
        ({"beside": "cls"}, "The two methods are the same"),
        ({"beside": "fastv", "layer": 2}, "Choose a layer from 0 to 1."),
        *(({name: value}, "no words where words belong") for name in ("method", "question") for value in ({}, 5, None)),
        *(({"method": "fastv", "layer": layer}, "Choose a layer from 0 to 1.") for layer in (-1, 2, 99, None)),
        ({"path": __file__}, "This file was not handed in here"),
    ],
)
def test_mistakes_are_sentences_and_clear_the_page(events, picture, changes, sentence):
    turn = events.ask(*values(**({"path": picture()} | changes)))
    seen = []
    with pytest.raises(gr.Error) as error:
        seen.extend(turn)
    assert sentence in str(error.value.message)
    assert error.value.print_exception is False
    assert seen[-1] == ("",) * 5 + (None,)  # list.extend keeps what came before the error


def test_what_is_no_mistake_of_the_user_is_one_line_in_the_terminal(events, picture, monkeypatch, capsys):
    monkeypatch.setattr(events.engine, "reply", lambda *_: 1 / 0)
    with pytest.raises(gr.Error, match="This failed"):
        list(events.ask(*values(picture())))
    assert capsys.readouterr().err == "fastervlm: the demo failed with ZeroDivisionError: division by zero\n"


def test_only_what_was_handed_in_is_looked_at(engine, events, picture, tmp_path, monkeypatch):
    own, said = picture(), []
    monkeypatch.setattr(gr, "Warning", said.append)
    nothing = gr.skip()
    assert events.look_at({"path": str(own)})[0] == nothing
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "elsewhere"))
    for forged in ({"path": str(own)}, {"path": None}, {"url": str(own)}, str(own), [], {"path": "x" * 9999}):
        assert events.look_at(forged) == (None, *[""] * 5, None)
    assert said == ["This file was not handed in here; choose it on the page."] * 6
    assert Events(engine, [(str(own), "What?")]).look_at({"path": str(own)})[0] == nothing


def test_what_is_stopped_says_so():
    before = views.answers(Answers(Reply(None), (Pruned("cls", Reply(4)),)), amount, [4], "The full model answers …")
    between = views.answers(Answers(Reply(None, "a …", FULL), (Pruned("cls", Reply(4, "half")),)), amount, [4], "More …")
    done = views.answers(answered(SLOW, QUICK), amount, [4])
    for page in (before, between):
        assert 'data-step="Stopped."' in views.stopped(page)
        assert 'data-asked="[4]"' in views.stopped(page)
        assert "fv-wait" not in views.stopped(page)
    assert "a …" in views.stopped(between)
    assert "half" in views.stopped(between)
    assert views.stopped(done) == done
    assert views.stopped("") == ""
    assert views.stopped(None) == ""


def test_each_step_is_said():
    said = [views.step_of(state, 2) for state in STATES]
    assert said == [
        "The full model answers …",
        "The model pruned by cls answers …",
        "All answer 7 times more, by turns, to be timed …",
        "Answering with fewer tokens …",
        "Reading the attention …",
        "",
    ]
    assert views.step_of(STATES[3], 0) == ""


REPLY = Reply(4, "a", FEW)
TIMED = replace(answered(SLOW, QUICK), pruned=(Pruned("cls", REPLY, sweep=(REPLY,)),))
SWEPT = replace(TIMED, pruned=(Pruned("cls", REPLY, sweep=(REPLY, REPLY)),))
STATES = [
    Answers(Reply(None, "a"), (Pruned("cls", Reply(4)),)),
    Answers(Reply(None, "a", FULL), (Pruned("cls", Reply(4)),)),
    Answers(Reply(None, "a", FULL, (0.1,) * 6), (Pruned("cls", REPLY),)),
    TIMED,
    SWEPT,
    replace(SWEPT, attention=UserError("none")),
]


def test_the_layer_is_shown_where_there_is_one(events):
    assert [name for name in METHODS if has_layer(name)] == ["fastv"]
    assert events.show_layer("cls", "")["visible"] is False
    for methods in (("fastv", ""), ("cls", "fastv")):
        assert events.show_layer(*methods)["value"] == 1  # of a model with two layers
    for forged in ("best", {}, 5, None):
        assert events.show_layer(forged, "")["visible"] is False


def run(monkeypatch, capsys, *arguments):
    """The command line; its exit code and stderr."""
    monkeypatch.setattr(sys, "argv", ["fastervlm", "demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err.splitlines()[-1]


def test_without_gradio_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, said = run(monkeypatch, capsys)
    assert (code, said) == (2, "fastervlm: The demo needs gradio; install it with: pip install 'fastervlm[demo]'.")


@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_of_ipv6_are_refused(engine, host):
    with pytest.raises(UserError, match="the page needs an address of IPv4"):
        serve(engine, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "no.such.host.invalid"])
def test_where_nothing_can_listen(engine, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            serve(engine, host=host, port=port)
    assert str(error.value) == f"Nothing can listen at {host}, port {port}; give another --host or --port."
