"""What a log sees of a long run, and what a terminal."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from fastervlm.reporting import progress as room
from fastervlm.reporting.progress import progress, track

LINE = re.compile(
    r"^pictures: (\d+) of (\d+) \(\d+ %\), [\d.]+/(s|min), ((\d+:\d\d:\d\d|unknown time) left|took \d+:\d\d:\d\d)"
    r"(, (\d+) answered, (\d+) failed)?$"
)


class Log(io.StringIO):
    """A file that says when it holds so many lines."""

    def __init__(self):
        super().__init__()
        self.grown = threading.Condition()

    def write(self, text):
        with self.grown:
            self.grown.notify_all()
            return super().write(text)

    def wait(self, lines):
        with self.grown:
            assert self.grown.wait_for(lambda: self.getvalue().count("\n") >= lines, timeout=60)


@pytest.fixture
def log(monkeypatch):
    """A log in which lines come quickly."""
    log = Log()
    monkeypatch.setattr(room, "console", Console(file=log, soft_wrap=True, highlight=False, markup=False))
    monkeypatch.setattr(room, "SECONDS", 0.01)
    return log


def test_a_log_gets_lines_while_the_run_goes_on(log):
    with progress("pictures", 10, 2, may_fail=True) as advance:
        log.wait(1)
        advance(4, 1)
        seen = log.getvalue().count("\n")
        log.wait(seen + 2)
        advance(4, 0)
    found = [LINE.match(line) for line in log.getvalue().splitlines()]
    assert all(found), log.getvalue()
    told = [(int(m[1]), int(m[2]), int(m[7]), int(m[8])) for m in found if m]
    assert told[0] == (2, 10, 2, 0)
    assert (6, 10, 5, 1) in told
    assert told[-1] == (10, 10, 9, 1)
    assert told == sorted(told)


def test_a_line_comes_where_nothing_moves(log):
    """Somebody who looks at the log sees that the run is alive, and that it stands still."""
    with progress("pictures", 3):
        log.wait(3)
    assert {line.split(",")[0] for line in log.getvalue().splitlines()} == {"pictures: 0 of 3 (0 %)"}
    assert "unknown time left" in log.getvalue()


def test_what_fails_ends_the_lines(log):
    def stopped():
        yield 1
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(track(stopped(), "pictures", 3))
    assert threading.active_count() == before
    assert log.getvalue().splitlines()[-1].startswith("pictures: 1 of 3 (33 %)")


def test_the_numbers_of_a_line(log, monkeypatch):
    """A third is done; what an earlier run did does not make this one faster."""
    now = [100.0]
    monkeypatch.setattr(room, "SECONDS", 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress("pictures", 60, 10, may_fail=True) as advance:
        advance(10, 3)
        now[0] += 4000.0
    assert log.getvalue() == "pictures: 20 of 60 (33 %), 0.1/min, 4:26:40 left, 17 answered, 3 failed\n"


def test_a_short_run_tells_its_end_alone(log, monkeypatch):
    monkeypatch.setattr(room, "SECONDS", 30.0)
    assert list(track(iter("abc"), "pictures", 3)) == ["a", "b", "c"]
    (line,) = log.getvalue().splitlines()
    assert re.match(r"^pictures: 3 of 3 \(100 %\), [\d.]+/s, took 0:00:0\d$", line)


def test_nothing_to_do(log):
    assert list(track([], "pictures", 0)) == []
    assert log.getvalue().splitlines()[-1].startswith("pictures: 0 of 0 (0 %), 0.0/s, took")


def test_a_terminal_gets_a_bar(monkeypatch):
    seen = io.StringIO()
    monkeypatch.setattr(room, "console", Console(file=seen, force_terminal=True, width=100, _environ={"TERM": "xterm"}))
    assert list(track(range(3), "pictures", 3)) == [0, 1, 2]
    assert "━" in seen.getvalue()
    assert "3/3" in seen.getvalue()
    assert " of 3" not in seen.getvalue()
