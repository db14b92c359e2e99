"""`fastervlm video-score` with a judge: runs that are killed, mistakes, and keys."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from encoders import UserError
from fastervlm import cli
from fastervlm.eval.chat import Chat
from tests.support.chat_server import YES

ROOT = Path(__file__).parents[2]


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
