"""The judge against a stub of an OpenAI-compatible server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from encoders import UserError
from fastervlm import cli
from video import chat as chat_module
from video import judge as judge_module
from video.chat import Chat, NoReply, RateLimit
from video.judge import ASKED, IN_A_ROW, Tally, judge, verdict_in

ROOT = Path(__file__).parents[2]
YES = '{"pred": "yes", "score": 4}'


def completion(text):
    """The body of a chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Stub:
    """A server on this machine; `reply(question, times)` says what comes of the n-th request about a question.

    It gives a text, or (status, body), or (status, body, headers), or a number of seconds to be silent for.
    """

    def __init__(self, reply):
        self.reply, self.requests, self.times, self.started = reply, [], Counter(), []
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = body["messages"][-1]["content"]
                name = asked.partition("Question: ")[2].partition("\n")[0]
                with stub.lock:
                    stub.requests.append((self.path, dict(self.headers), body))
                    stub.started.append(time.monotonic())
                    stub.times[name] += 1
                    said = stub.reply(name, stub.times[name])
                if isinstance(said, float):
                    time.sleep(said)
                    said = YES
                status, text, *headers = (200, completion(said)) if isinstance(said, str) else said
                try:
                    self.send_response(status)
                    for header in headers:
                        for item in header.items():
                            self.send_header(*item)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # the client went away

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def chat(self, **changes):
        settings: dict[str, Any] = {"pause": 0.001, "timeout": 5.0} | changes
        return Chat(self.base, "tiny-judge", **settings)


@pytest.fixture
def stub(monkeypatch):
    """Makes a stub server of what it replies."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = []

    def make(reply):
        made.append(Stub(reply if callable(reply) else lambda *_: reply))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def predictions(tmp_path):
    """Six answers, as the reference writes them."""
    path = tmp_path / "n_4.pred.jsonl"
    lines = [{"id": f"v_{i}", "question": f"Q{i}?", "answer": f"right {i}", "pred": f"given {{{i}}}"} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_answer_is_shown_to_the_judge_and_its_verdicts_are_summed(stub, predictions, tmp_path):
    said = {f"Q{i}?": f'{{"pred": "{"yes" if i % 3 else "no"}", "score": {i}}}' for i in range(6)}
    server = stub(lambda name, _: said[name])
    result, tally = judge(predictions, server.chat(key="secret"), tmp_path / "out.json")
    assert (tally.yes, tally.no, tally.accuracy, tally.average_score) == (4, 2, 4 / 6, 15 / 6)
    assert json.loads((tmp_path / "out.json").read_text())["verdicts"] == result["verdicts"]
    assert [verdict["id"] for verdict in result["verdicts"]] == [f"v_{i}" for i in range(6)]
    assert sorted(server.times.values()) == [1] * 6
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == "Bearer secret"
        assert (body["model"], body["temperature"]) == ("tiny-judge", 0)
        shown = body["messages"][1]["content"]
        i = shown.partition("Question: Q")[2][0]
        assert f"right {i}" in shown
        assert f"given {{{i}}}" in shown
    assert not (tmp_path / "out.json.partial").exists()
    assert "secret" not in (tmp_path / "out.json").read_text()


def test_without_a_key_none_is_sent(stub):
    server = stub(YES)
    server.chat()([{"role": "user", "content": "x"}])
    assert "Authorization" not in server.requests[0][1]


def test_finished_verdicts_are_not_asked_for_again(stub, predictions, tmp_path):
    server = stub(YES)
    first = judge(predictions, server.chat(), tmp_path / "out.json")
    second = judge(predictions, server.chat(), tmp_path / "out.json")
    assert len(server.requests) == 6
    assert first[1] == second[1]
    with pytest.raises(UserError, match="judge is 'tiny-judge' there and 'other' now"):
        judge(predictions, Chat(server.base, "other"), tmp_path / "out.json")
    assert judge(predictions, Chat(f"{server.base}/", "tiny-judge"), tmp_path / "out.json")[1] == first[1]


def test_verdicts_of_two_endpoints_never_mix(stub, predictions, tmp_path):
    """Neither finished ones nor those of a run that was ended."""
    one, other = stub(lambda name, _: (401, "") if name == "Q3?" else YES), stub(YES)
    with pytest.raises(UserError, match="401"):
        judge(predictions, one.chat(), tmp_path / "out.json", workers=1)
    assert (tmp_path / "out.json.partial").exists()
    for reply in (YES, None):
        with pytest.raises(UserError, match=f"api_base is '{one.base}' there and '{other.base}' now"):
            judge(predictions, other.chat(), tmp_path / "out.json")
        one.reply = lambda *_, reply=reply: reply
        judge(predictions, one.chat(), tmp_path / "out.json")
    assert not other.requests


def test_a_journal_left_beside_finished_verdicts_is_cleared(stub, predictions, tmp_path):
    server, journal = stub(YES), tmp_path / "out.json.partial"
    judge(predictions, server.chat(), tmp_path / "out.json")
    journal.touch()
    judge(predictions, server.chat(), tmp_path / "out.json")
    assert not journal.exists()


BUSY = {
    "408": (408, ""),
    "409": (409, ""),
    "425": (425, ""),
    "429 and seconds": (429, "{}", {"Retry-After": "0.3"}),
    "429 and a date": (429, "slow", {"Retry-After": formatdate(time.time() - 5, usegmt=True)}),
    "429 and a date that no calendar has": (429, "slow", {"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}),
    "429 and nonsense": (429, "slow", {"Retry-After": "soon"}),
    "500": (500, ""),
    "503": (503, "<html>no</html>"),
    "no JSON": (200, "hello"),
    "no choices": (200, "{}"),
    "an empty list": (200, '{"choices": []}'),
    "no text": (200, '{"choices": [{"message": {"content": null}}]}'),
}


@pytest.mark.parametrize("first", BUSY.values(), ids=BUSY)
def test_what_passes_is_tried_again(stub, predictions, tmp_path, first):
    server, told = stub(lambda _, times: first if times < 3 else YES), []
    _, tally = judge(predictions, server.chat(say=told.append), tmp_path / "out.json", workers=6)
    assert (tally.yes, tally.judged) == (6, 6)
    assert len(told) == 1
    assert set(server.times.values()) == {3}


def test_the_endpoint_says_how_long_to_wait(stub):
    server = stub(lambda _, times: BUSY["429 and seconds"] if times == 1 else YES)
    server.chat(pause=60)([{"role": "user", "content": "x"}])
    assert 0.29 < server.started[1] - server.started[0] < 30


def test_a_wait_is_never_above_a_minute(monkeypatch):
    assert chat_module._pause(1.0, 86400.0) == 60
    assert chat_module._pause(1000.0, None) == 60


def test_silence_is_cut_short_and_tried_again(stub):
    server = stub(lambda _, times: 30.0 if times == 1 else YES)
    start = time.monotonic()
    assert server.chat(timeout=0.2)([{"role": "user", "content": "x"}]) == YES
    assert time.monotonic() - start < 20


FATAL = [(401, '{"error": {"message": "bad key"}}', "401 \\(bad key\\)"), (403, "", "403"), (404, "no", "404 \\(no\\)")]


@pytest.mark.parametrize(("status", "body", "message"), FATAL)
def test_what_no_request_will_survive_ends_the_run_at_once(stub, predictions, tmp_path, status, body, message):
    server = stub((status, body))
    with pytest.raises(UserError, match=message):
        judge(predictions, server.chat(key="secret"), tmp_path / "out.json", workers=1)
    assert len(server.requests) == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_carried_to_another_host(stub, status):
    other = stub(YES)
    server = stub((status, "", {"Location": f"{other.base}/chat/completions"}))
    with pytest.raises(UserError, match=str(status)):
        server.chat(key="secret")([{"role": "user", "content": "x"}])
    assert not other.requests


def test_a_refused_question_is_named_and_the_others_go_on(stub, predictions, tmp_path):
    server = stub(lambda name, _: (400, '{"error": {"message": "filtered"}}') if name == "Q2?" else YES)
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"]) == (5, 1)
    assert result["failures"][0]["id"] == "v_2"
    assert "filtered" in result["failures"][0]["reason"]
    assert server.times["Q2?"] == 1
    server.reply = lambda *_: YES
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"], server.times["Q2?"], server.times["Q1?"]) == (6, 0, 2, 1)
    assert not (tmp_path / "out.json.partial").exists()


def test_garbage_is_asked_again_within_bounds(stub, predictions, tmp_path):
    server = stub(lambda name, times: "I think so" if name == "Q1?" or (name == "Q3?" and times == 1) else YES)
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"]) == (5, 1)
    assert "no verdict in 3 replies" in result["failures"][0]["reason"]
    assert server.times == Counter({f"Q{i}?": {1: ASKED, 3: 2}.get(i, 1) for i in range(6)})


def test_a_dead_endpoint_ends_the_run(stub, predictions, tmp_path):
    server = stub((500, "down"))
    with pytest.raises(UserError, match=r"5 answers in a row got no verdict: .* answers 500 \(down\), 2 times"):
        judge(predictions, server.chat(retries=1), tmp_path / "out.json", workers=1)
    assert 2 * IN_A_ROW <= len(server.requests) <= 2 * IN_A_ROW + 2
    with pytest.raises(NoReply, match="cannot be reached"):
        Chat("http://127.0.0.1:9", "m", retries=0)([])


@pytest.mark.parametrize("reply", ["no idea", (400, "no")])
def test_an_endpoint_that_never_judges_ends_the_run(stub, predictions, tmp_path, reply):
    """The next run goes on behind the five, and one more asks about those again, to the end."""
    server, out = stub(reply), tmp_path / "out.json"
    with pytest.raises(UserError, match="5 answers in a row got no verdict"):
        judge(predictions, server.chat(), out, workers=1)
    assert not out.exists()
    assert len(server.times) <= IN_A_ROW + 1  # one may have begun meanwhile
    server.reply = lambda name, _: YES if name == "Q5?" else (400, "filtered")
    result, tally = judge(predictions, server.chat(), out, workers=1)
    assert (tally.judged, result["failed"]) == (1, 5)
    assert out.exists()


def test_only_failures_in_a_row_end_the_run(stub, predictions, tmp_path, monkeypatch):
    """Four silent and one answered, twelve times; nobody looks before all have come."""
    predictions.write_text(predictions.read_text() * 10)
    said = iter(([(500, "")] * 4 + [YES]) * 12)
    server = stub(lambda *_: next(said))

    def late(things, *_, **__):
        while len(server.requests) < 60:
            time.sleep(0.01)
        time.sleep(0.05)
        return things

    monkeypatch.setattr(judge_module, "track", late)
    result, _ = judge(predictions, server.chat(retries=0), tmp_path / "out.json", workers=1)
    assert result["failed"] == 48


def test_a_reply_without_end_is_read_to_a_bound(stub):
    server = stub((200, completion("x" * (2 * chat_module.LONGEST_REPLY))))
    with pytest.raises(NoReply, match="no chat completion"):
        server.chat(retries=0)([{"role": "user", "content": "x"}])
    server = stub((400, "x" * (2 * chat_module.LONGEST_REPLY)))
    with pytest.raises(NoReply, match=r"400 \(x{200}\)$"):
        server.chat(retries=0)([{"role": "user", "content": "x"}])


def test_requests_keep_to_the_rate(monkeypatch):
    """Three callers at once, then one after a pause: each is told to wait until half a second after the one before."""
    now = [100.0]
    monkeypatch.setattr(chat_module.time, "monotonic", lambda: now[0])
    rate = RateLimit(120)
    assert [rate.wait() for _ in range(3)] == [0, 0.5, 1.0]
    now[0] += 10
    assert [rate.wait(), rate.wait()] == [0, 0.5]
    assert [RateLimit(None).wait() for _ in range(3)] == [0, 0, 0]


def test_the_judge_waits_for_its_turns(stub, predictions, tmp_path):
    server = stub(YES)
    start = time.monotonic()
    judge(predictions, server.chat(rate=RateLimit(1200)), tmp_path / "out.json", workers=6)
    assert time.monotonic() - start >= 5 * 0.05


VERDICTS = [
    ("{'pred': 'yes', 'score': 4.8}", {"pred": "yes", "score": 4.8}),
    (YES, {"pred": "yes", "score": 4}),
    (' {"pred": "no", "score": null}\n', {"pred": "no", "score": None}),
    ("```json\n" + YES + "\n```", {"pred": "yes", "score": 4}),
    ("Sure: {'pred': 'no', 'score': 0}.", {"pred": "no", "score": 0}),
    ("{'pred': 'yes'}", {"pred": "yes"}),
    ("{'score': 'high', 'pred': 'no'}", {"score": "high", "pred": "no"}),
    ("__import__('os').abort()", None),
    ("{'pred': __import__('os').abort(), 'score': 1}", None),
    ("['yes', 4]", None),
    ("yes, 4", None),
    ("{}", None),
    ("{'answer': 'yes'}", None),
    ("{'pred': 'yes', 'score': 50}", None),
    ("{'pred': 'yes', 'score': -1}", None),
    ("{'pred': {'yes'}, 'score': 4}", None),
    ("{'pred': 'yes', 'score': 4j}", None),
    ('{"pred": "yes", "score": NaN}', None),
    ("{'pred': 'yes', 'score': 1e400}", None),
    ("{'pred': 'yes', 'score': ", None),
    ("(" * 5000, None),
    (YES + " " * 20000, None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "verdict"), VERDICTS)
def test_replies_are_read_and_never_run(reply, verdict):
    assert verdict_in(reply) == verdict


TALLIES = [
    ([{"pred": "yes", "score": 4.8}, {"pred": "no", "score": 1}], (0.5, 2.5, 1, 1)),
    ([{"pred": "Yes, it is not wrong", "score": 5}], (1.0, 5.0, 1, 0)),
    ([{"pred": "I do not know", "score": 1}], (0.0, 1.0, 0, 1)),
    ([{"pred": "perhaps", "score": 3}], (None, 3.0, 0, 0)),
    ([{"pred": "yes"}, {"pred": "yes", "score": 4}], (1.0, 2.0, 1, 0)),
    ([{"pred": "yes", "score": "4.8"}, {"pred": "no", "score": None}], (None, 0.0, 0, 0)),
    ([{"pred": "yes", "score": "4"}], (1.0, 4.0, 1, 0)),
    ([{"score": 2}, {"pred": "no", "score": 4}], (0.0, 3.0, 0, 1)),
    ([], (None, 0.0, 0, 0)),
]


@pytest.mark.parametrize(("verdicts", "expected"), TALLIES)
def test_verdicts_are_counted_as_the_reference_counts(verdicts, expected):
    tally = Tally.of(verdicts)
    assert (tally.accuracy, tally.average_score, tally.yes, tally.no) == expected
    assert tally.judged == len(verdicts)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `fastervlm video-score` in this process; gives exit code, stdout and stderr."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastervlm", "video-score", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_killed_and_started_again_nothing_is_judged_twice(stub, predictions, command):
    """The fourth question is silent for long; the run is killed there, and the second goes on behind what is written."""
    silent = threading.Event()
    silent.set()
    server = stub(lambda name, _: 300.0 if name == "Q3?" and silent.is_set() else YES)
    where = ["--result-file", str(predictions), "--api-base", server.base, "--model", "org/judge"]
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "from the environment"}
    process = subprocess.Popen(
        [sys.executable, "-m", "video", "video-score", *where, "--workers", "1"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    journal = predictions.with_name("n_4.pred.org-judge.json.partial")

    def written():
        return journal.read_text().count("\n") if journal.exists() else 0

    while (server.times["Q3?"] == 0 or written() < 4) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(journal.read_text().splitlines()) == 4
    silent.clear()
    code, out, err = command(*where)
    assert code == 0, err
    assert "Accuracy by the judge: 100.00%\nAverage score: 4.00 of 5" in out
    assert server.times == Counter({f"Q{i}?": 2 if i == 3 else 1 for i in range(6)})
    assert server.requests[0][1]["Authorization"] == "Bearer from the environment"
    assert "Authorization" not in server.requests[-1][1]
    assert not journal.exists()


def test_command_names_what_failed_and_ends_with_an_error(stub, predictions, command, tmp_path):
    server = stub(lambda name, _: "what?" if name == "Q5?" else YES)
    where = ("--result-file", predictions, "--api-base", server.base, "--model", "judge")
    code, out, err = command(*where, "--json", tmp_path / "score.json")
    assert code == 1
    assert "Exact match: 0.00%" in out
    assert "fastervlm: answer v_5: no verdict in 3 replies, the last of them 'what?'" in err
    assert "1 answers have no verdict" in err
    assert json.loads((tmp_path / "score.json").read_text())["samples"] == 6


WRONG = [
    (["--api-base", "localhost:8000"], "no address"),
    (["--api-base", ""], "no address"),
    (["--api-base", "http://"], "no address"),
    (["--api-base", "http://[bad"], "no address"),
    (["--api-base", "http://host:port/v1"], "no address"),
    (["--api-base", "http://me:word@host/v1"], "no address"),
    (["--api-base", "http://b\u00fccher.example/v1"], "no address"),
    (["--api-base", f"http://{'a' * 64}.example/v1"], "no address"),
    (["--api-base", "http://host/v 1"], "no address"),
    (["--timeout", "1e12"], "--timeout is 1000000000000.0; it must be above 0 and at most 86400 seconds"),
    (["--timeout", "inf"], "--timeout is inf"),
    (["--timeout", "nan"], "--timeout is nan"),
    (["--requests-per-minute", "0"], "must be at least 0.01"),
    (["--requests-per-minute", "1e-300"], "must be at least 0.01"),
    (["--requests-per-minute", "nan"], "must be at least 0.01"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_addresses_times_and_rates_are_one_sentence(predictions, command, options, message):
    base = [] if "--api-base" in options else ["--api-base", "http://127.0.0.1:9/v1"]
    code, _, err = command("--result-file", predictions, *base, "--model", "m", *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


def test_the_line_end_that_a_file_leaves_in_the_key_is_not_sent(stub, predictions, command, monkeypatch):
    server = stub(YES)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET\r\n")
    assert command("--result-file", predictions, "--api-base", server.base, "--model", "m")[0] == 0
    assert {headers["Authorization"] for _, headers, _ in server.requests} == {"Bearer sk-SECRET"}


@pytest.mark.parametrize("key", ["sk-SECRET\rx", "sk-SECRET\u0416", "sk-SECRET\u2026", "sk-SECRET\x7f", "\u00fcSECRET"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(predictions, command, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code, out, err = command("--result-file", predictions, "--api-base", "http://127.0.0.1:9/v1", "--model", "m")
    assert (code, err) == (2, "fastervlm: The key in OPENAI_API_KEY holds characters that no key has; copy it again.\n")
    assert "SECRET" not in out
    with pytest.raises(UserError) as caught:
        Chat("http://127.0.0.1:9", "m", key)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Down\r\n\r\n"])
def test_a_reply_that_drips_in_does_not_outlive_the_timeout(head, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            with listening.accept()[0] as connection, suppress(OSError):
                connection.sendall(head)
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(NoReply):
            Chat(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", timeout=0.4, retries=0)([])
    assert 0.3 < time.monotonic() - began < 5
