"""Hundreds of mistakes at the command line: each is refused in a sentence or right after all, none is a traceback or a hang.

`make mistakes` runs it and prints the counts; COUNT and SEED in the environment choose others.
"""

import os
import signal
import sys
from collections import Counter

import pytest

from fastervlm import cli
from tests.support.mistakes import mistakes, playing_field

COUNT = int(os.environ.get("COUNT", "336"))
SEED = int(os.environ.get("SEED", "20"))
PATIENCE = 60  # seconds for one command
# Where minutes of work begin, of a command in which nothing was found wrong; and where a server would wait for its visitors.
WORK = ("bench.run.evaluate", "bench.run._measure", "bench.workload.random_model", "demo.serve.serve")


class Hang(BaseException):
    """A command takes too long."""


class Begun(BaseException):
    """A command has found nothing wrong and begins its work."""


def begin(*_, **__):
    raise Begun


def late(*_):
    raise Hang


def outcome(arguments, capsys):
    """What comes of a command: sentence, right, traceback or hang; and what it said."""
    sys.argv = ["fastervlm", *arguments]
    signal.alarm(PATIENCE)
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except Begun:
        code = 0
    except Hang:
        return "hang", ""
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    out, err = capsys.readouterr()
    if code in (0, None):
        return "right", ""
    return ("sentence", err) if (err + out).strip() and "Traceback" not in err else ("traceback", err or f"silent, {code}")


@pytest.mark.slow
def test_mistakes_are_sentences(tmp_path, monkeypatch, capsys):
    there = playing_field(tmp_path)
    monkeypatch.chdir(tmp_path)
    for place in WORK:
        monkeypatch.setattr(f"fastervlm.{place}", begin)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("fastervlm.cli.add_commands", _once(cli.add_commands))
    before, argv = signal.signal(signal.SIGALRM, late), sys.argv
    counts, wrong = Counter(), []
    try:
        for number, arguments in enumerate(mistakes(there, tmp_path / "out", COUNT, SEED)):
            what, said = outcome(arguments, capsys)
            counts[what] += 1
            if what in ("traceback", "hang"):
                wrong.append((number, what, " ".join(arguments)[:600], said[:300]))
    finally:
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    with capsys.disabled():
        names = ("sentence", "right", "traceback", "hang")
        print("\n" + ", ".join(f"{name}: {counts[name]}" for name in names), f"of {COUNT} mistakes, seed {SEED}")
        for each in wrong:
            print(each)
    assert not wrong


def _once(function):
    done = []
    return lambda: done or done.append(function())
