"""The engine of many workers: on one machine, on its GPUs, or on a cluster, by Ray.

Actors of Ray are used, and not Ray Data, whose retries do not tell which batch killed a worker. Answers come back to the one
process that writes the journal, so that a run resumes as any other does.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import Entry
from fastervlm.eval.engine import Running
from fastervlm.eval.ray_pool import AHEAD, Pool
from fastervlm.eval.ray_session import check_installed, needs, session, share
from fastervlm.eval.ray_worker import Worker
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.progress import console


@dataclass(frozen=True)
class RayEngine:
    """Models in `workers` processes: one for each GPU if left out, or for each machine without GPUs.

    `address` is that of a running cluster, "auto" the one this machine belongs to; without it Ray is started here and ends with
    the run. `worker` is the class that answers.
    """

    workers: int | None = None
    address: str | None = None
    worker: type[Worker] = Worker

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers is {self.workers}; it must be at least 1.")
        check_installed()

    @contextmanager
    def running(self, subject: Subject, settings: Settings) -> Iterator[Running]:
        """The models, loaded and checked; they end with the context, and so do they if this process is killed."""
        if subject.device not in (None, "cpu", "cuda"):
            raise UserError(
                f"--device {subject.device} is one device; name the GPUs by CUDA_VISIBLE_DEVICES with --engine ray."
            )
        with session(self.address, self.workers) as ray:
            count, share_of_each = share(ray, self.workers, subject.device)
            actor = ray.remote(self.worker).options(max_concurrency=AHEAD, scheduling_strategy="SPREAD", **share_of_each)
            unloaded = replace(subject)
            folder = os.getcwd()

            def hire() -> Any:
                return actor.remote(unloaded, settings, folder)

            console.print(f"{count} {'worker loads' if count == 1 else 'workers load'} the model.")
            with closing(Pool(ray, hire, count, console.print, lambda: needs(ray, share_of_each))) as pool:
                pool.wait()
                yield _Workers(pool, count)


@dataclass(frozen=True)
class _Workers:
    pool: Pool
    count: int

    @property
    def identity(self) -> dict[str, Any]:
        return self.pool.hellos[0].identity

    @property
    def device(self) -> str:
        return ", ".join(sorted({hello.device for hello in self.pool.hellos}))

    @property
    def about(self) -> dict[str, Any]:
        machines = len({hello.machine for hello in self.pool.hellos})
        return {"engine": "ray", "workers": self.count, "machines": machines}

    def answers(self, batches: Sequence[list[Question]]) -> Generator[list[Entry], None, None]:
        return self.pool.answers(batches)
