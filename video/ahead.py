"""Many files, decoded ahead of the one who uses them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from encoders import UserError
from video.decoder import close_idle
from video.frames import Frames, check_sampling, sample_frames


def read_ahead(
    paths: Iterable[str | os.PathLike[str]], *, workers: int = 2, **sampling: Any
) -> Generator[Frames | UserError, None, None]:
    """The frames of each file in order, or the error of a file that cannot be read.

    `workers` processes decode ahead; at most one result more than there are workers waits or is being made. `sampling` is
    that of `sample_frames`. Closing the iterator ends the workers.

    Raises:
        UserError: the sampling itself is not possible.
    """
    check_sampling(**sampling)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers must be a whole number of at least 1, not {workers!r}.")
    return _results(paths, workers, sampling)


def _results(
    paths: Iterable[str | os.PathLike[str]], workers: int, sampling: dict[str, Any]
) -> Generator[Frames | UserError, None, None]:
    def attempt(path: str | os.PathLike[str]) -> Frames | UserError:
        try:
            return sample_frames(path, **sampling)
        except UserError as error:
            return error

    pool = ThreadPoolExecutor(workers, thread_name_prefix="read_ahead")
    waiting = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(attempt, path))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        close_idle()
