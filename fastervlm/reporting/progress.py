"""How far a long run has come: a bar on a terminal, and in a log a line every half minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int, int], None]
T = TypeVar("T")

SECONDS = 30.0  # between two lines
console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def progress(what: str, total: int, done: int = 0, *, may_fail: bool = False) -> AbstractContextManager[Advance]:
    """A context that shows how far something has come, and gives the function that moves it on.

    Args:
        what: the things that are counted, in the plural.
        total: how many there are.
        done: how many of them were done before.
        may_fail: lines of a log tell those that failed from the others.

    Returns:
        The context; its function takes how many more are done, and how many of those failed.
    """
    return _bar(what, total, done) if console.is_terminal else _lines(what, total, done, may_fail)


def track(things: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The things one by one, with progress; `what` they are, in the plural, and how many."""
    with progress(what, total) as advance:
        for thing in things:
            yield thing
            advance(1, 0)


class _Rate(ProgressColumn):
    """Things a second."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "-/s")


@contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("left"), console=console) as shown:
        task = shown.add_task(what, total=total, completed=done)
        yield lambda number, _failed: shown.advance(task, number)


@contextmanager
def _lines(what: str, total: int, done: int, may_fail: bool) -> Iterator[Advance]:
    """A line every half minute, whether something came of it or not, and one at the end."""
    count, ended = _Count(what, total, done, may_fail), threading.Event()

    def tell() -> None:
        while not ended.wait(SECONDS):
            console.print(count.line())

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield count.advance
    finally:
        ended.set()
        teller.join()
        console.print(count.line())


class _Count:
    def __init__(self, what: str, total: int, done: int, may_fail: bool) -> None:
        self.what, self.total, self.before, self.may_fail = what, total, done, may_fail
        self.now = self.failed = 0
        self.begin = time.monotonic()

    def advance(self, number: int, failed: int) -> None:
        self.now += number
        self.failed += failed

    def line(self) -> str:
        """Done and total, rate, time left, and how many of the done were answered and how many failed."""
        done, seconds = self.before + self.now, time.monotonic() - self.begin
        parts = [f"{self.what}: {done} of {self.total} ({100 * done / max(1, self.total):.0f} %)", self._rate(seconds)]
        if done < self.total:
            parts.append(f"{_clock(seconds * (self.total - done) / self.now) if self.now else 'unknown time'} left")
        else:
            parts.append(f"took {_clock(seconds)}")
        if self.may_fail:
            parts.append(f"{done - self.failed} answered, {self.failed} failed")
        return ", ".join(parts)

    def _rate(self, seconds: float) -> str:
        speed = self.now / seconds if seconds > 0 else 0.0
        return f"{speed:.1f}/s" if speed >= 1 or not speed else f"{60 * speed:.1f}/min"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
