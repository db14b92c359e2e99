"""The caller's side of the decoding process: started when needed, kept for the next file, killed when it hangs."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from video.worker import Request

PATIENCE = 30.0
SLOWEST_DISK = 10e6
START = "import sys; sys.path[:] = {path!r}; from video.worker import main; main()"


class Crashed(Exception):
    """The decoding process died or was silent for too long."""


class Decoder:
    """A process that decodes one file at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-c", START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._requests: Any = self.process.stdin
        self._answers: Any = self.process.stdout

    def ask(self, request: Request) -> Iterator[tuple[Any, ...]]:
        """The answers to a request, the pixels of a frame in place of its shape; `Crashed` if they stop."""
        wait = PATIENCE + os.path.getsize(request.path) / SLOWEST_DISK
        try:
            with self._watched(wait):
                pickle.dump(request, self._requests)
                self._requests.flush()
            while True:
                with self._watched(wait):
                    kind, *content = pickle.load(self._answers)
                    if kind == "frame":
                        content[1] = self._pixels(content[1])
                if kind != "beat":
                    yield kind, *content
                if kind in ("done", "refused", "failed"):
                    return
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise Crashed from error

    def close(self) -> None:
        """End the process, at once."""
        self.process.kill()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        self.process.wait()

    def _pixels(self, shape: tuple[int, ...]) -> np.ndarray:
        pixels = np.empty(shape, np.uint8)
        if self._answers.readinto(pixels.data.cast("B")) < pixels.nbytes:
            raise EOFError
        return pixels

    @contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()


_idle: dict[int, list[Decoder]] = {}


@contextmanager
def decoder() -> Iterator[Decoder]:
    """A decoder for this thread alone: an idle one of this process (not of the one it was forked from), or a new one."""
    idle = _idle.setdefault(os.getpid(), [])
    try:
        one = idle.pop()
    except IndexError:
        one = Decoder()
    try:
        yield one
    except BaseException:
        one.close()
        raise
    idle.append(one)


@atexit.register
def close_idle() -> None:
    """End the idle decoders of this process."""
    idle = _idle.pop(os.getpid(), [])
    while idle:
        idle.pop().close()
