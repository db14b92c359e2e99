"""Work that takes turns: one user's at a time, shown while it goes on, stopped when nobody looks any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

State = TypeVar("State")


class _Board(Generic[State]):
    """Where one thread puts the newest state and another waits for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.state: State | None = None
        self.ended = False
        self.error: BaseException | None = None

    def show(self, state: State) -> None:
        """Put a state in place of the one before."""
        with self.changed:
            self.state = state
            self.changed.notify()

    def end(self, error: BaseException | None) -> None:
        """There comes no more."""
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify()

    def take(self) -> State | None:
        """The newest state that was not taken yet, or None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.state is not None or self.ended)
            state, self.state = self.state, None
            return state


def in_turn(
    lock: threading.Lock, work: Callable[[Callable[[State], None], Callable[[], bool]], object]
) -> Generator[State, None, None]:
    """Run `work(show, stopped)` in a thread that holds the lock, and give the states that it shows.

    States that are shown faster than they are taken are left out, the last one never. What `work` raises is raised here.
    When the iterator is closed or dropped, `stopped()` becomes true. The lock is held until `work` returns and no longer,
    whatever becomes of the iterator.
    """
    board: _Board[State] = _Board()
    stop = threading.Event()

    def run() -> None:
        error = None
        try:
            with lock:
                if not stop.is_set():
                    work(board.show, stop.is_set)
        except BaseException as raised:
            error = raised
        board.end(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (state := board.take()) is not None:
            yield state
        if board.error is not None:
            raise board.error
    finally:
        stop.set()
