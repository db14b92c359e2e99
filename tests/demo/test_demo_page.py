"""What the page shows and does, without a browser."""

import socket
import sys
from typing import Any

import gradio as gr
import pytest

import fastervlm.cli as cli
from encoders import UserError
from fastervlm.demo import views
from fastervlm.demo.answers import Answers, Figures, Reply, has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.events import Events
from fastervlm.demo.serve import serve
from fastervlm.methods import METHODS

FULL = Figures(visual_tokens=576, first_token=0.4, rate=20.0, cache_bytes=2_000_000)
FEW = Figures(visual_tokens=58, first_token=0.1, rate=None, cache_bytes=500_000)
NASTY = '<script>alert(1)</script> & "more"'


def values(path, *, question="What?", keep: Any = 4, method="cls", layer: Any = 0, longest=4, known=None):
    """What the page sends, in its order."""
    return ({"path": str(path)} if path else None, question, keep, method, layer, True, longest, known)


@pytest.fixture
def events(engine, tmp_path, monkeypatch):
    """The handlers over the tiny model; what lies in the test's folder was handed in."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return Events(engine, [])


def test_texts_of_users_and_models_are_escaped(engine, asked):
    shown = list(answers(engine, asked()))[-1]
    reply = Reply(4, NASTY, FULL)
    pages = [
        views.answers(Answers(reply, reply), 16),
        views.sweep((reply, reply), NASTY),
        views.attention(UserError(NASTY)),
        views.kept(shown.kept, reply),
    ]
    assert all("<script" not in page for page in pages)
    assert all("&lt;script&gt;" in page for page in pages[:3])


def test_what_pruning_saved():
    page = views.answers(Answers(Reply(None, "a", FULL), Reply(58, "a", FEW)), 576)
    for part in ("4.0× as fast", "75% of the KV cache saved", "same answer", "Pruned to 58 of 576", "400 ms", "100 ms", "–"):
        assert part in page
    slower = views.answers(Answers(Reply(None, "a", FEW), Reply(58, "b", FULL)), 576)
    assert "0.2× as fast" in slower
    assert "-300% of the KV cache saved" in slower
    assert "another answer" in slower


def test_one_turn_fills_the_page(events, picture):
    updates = list(events.ask(*values(picture())))
    known = updates[-1][-1]
    assert known.keep == 0
    assert all(any(isinstance(update[i], str) and "fv-" in update[i] for update in updates) for i in range(4))
    again = list(events.ask(*values(picture(), keep=8, known=known)))
    assert not any(isinstance(update[i], str) for update in again for i in (2, 3))
    assert "Pruned to 8 of 16" in again[-1][0]
    other = list(events.ask(*values(picture(), question="Why?", known=known)))
    assert any(isinstance(update[2], str) and "Why?" in update[2] for update in other)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"path": None}, "Choose a picture first."),
        ({"question": " "}, "Type a question first."),
        *(({"keep": keep}, "Choose 1 to 16 tokens.") for keep in (0, -5, 9999, None, float("nan"), "4", 12.7, True)),
        *(({"longest": longest}, "Choose 1 to 256 tokens for the longest answer.") for longest in (0, 257, None)),
        ({"method": "best"}, "no method named"),
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
    assert seen[-1] == ("", "", "", "", None)  # list.extend keeps what came before the error


def test_what_is_no_mistake_of_the_user_is_one_line_in_the_terminal(events, picture, monkeypatch, capsys):
    monkeypatch.setattr(events.engine, "reply", lambda *_: 1 / 0)
    with pytest.raises(gr.Error, match="This failed"):
        list(events.ask(*values(picture())))
    assert capsys.readouterr().err == "fastervlm: the demo failed with ZeroDivisionError: division by zero\n"


def test_a_slider_moves_nothing_while_there_is_nothing_to_ask(events, picture):
    assert list(events.ask_again(*values(None))) == []
    assert list(events.ask_again(*values(picture(), question="  "))) == []
    assert list(events.ask_again(*values(picture(), keep=None))) == []
    assert list(events.ask_again(*values(picture(), method="fastv", layer=None))) == []
    assert list(events.ask_again(*values(picture())))


def test_only_what_was_handed_in_is_looked_at(engine, events, picture, tmp_path, monkeypatch):
    own, said = picture(), []
    monkeypatch.setattr(gr, "Warning", said.append)
    nothing = gr.skip()
    assert events.look_at({"path": str(own)})[0] == nothing
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "elsewhere"))
    for forged in ({"path": str(own)}, {"path": None}, {"url": str(own)}, str(own), [], {"path": "x" * 9999}):
        assert events.look_at(forged) == (None, "", "", "", "", None)
    assert said == ["This file was not handed in here; choose it on the page."] * 6
    assert Events(engine, [(str(own), "What?")]).look_at({"path": str(own)})[0] == nothing


def test_what_is_stopped_says_so():
    before = views.answers(Answers(Reply(None), Reply(4)), 16)
    between = views.answers(Answers(Reply(None, "a …", FULL), Reply(4, "half")), 16)
    done = views.answers(Answers(Reply(None, "a", FULL), Reply(4, "a", FEW)), 16)
    for page in (before, between):
        assert "Stopped." in views.stopped(page)
        assert "model …" not in views.stopped(page)
        assert "fv-wait" not in views.stopped(page)
    assert "a …" in views.stopped(between)
    assert "half" in views.stopped(between)
    assert views.stopped(done) == done
    assert views.stopped("") == ""


def test_the_layer_is_shown_where_there_is_one(events):
    assert [name for name in METHODS if has_layer(name)] == ["fastv"]
    assert events.show_layer("cls")["visible"] is False
    assert events.show_layer("fastv")["value"] == 1  # of a model with two layers


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
