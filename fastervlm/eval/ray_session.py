"""Ray itself: found, started or joined, and asked what it has; nothing here knows about models."""

from __future__ import annotations

import io
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from encoders.errors import UserError
from fastervlm.reporting.extras import need

# Ray tells nobody that it runs; its workers, which are the run, do not stand back behind other processes.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
STORE = 128 << 20  # bytes for objects in flight: questions and answers, no pictures but those inside question files


def check_installed() -> None:
    """A `UserError` if Ray is not installed; it is not imported."""
    need("ray", "ray", "--engine ray")


@contextmanager
def session(address: str | None, workers: int | None) -> Iterator[Any]:
    """The module `ray`, connected: to the cluster at `address`, without one to a Ray of this machine alone.

    What is begun here ends here; a Ray that this process has already joined is used as it is and left alone. Ray prints on
    standard output, which belongs to the command, so that nothing is printed there meanwhile.

    Raises:
        UserError: Ray is not installed, cannot be started, or there is no cluster at the address.
    """
    check_installed()
    import ray

    joined = ray.is_initialized()
    with redirect_stdout(io.StringIO()):
        if not joined:
            _begin(ray, address, workers)
        try:
            yield ray
        finally:
            if not joined:
                ray.shutdown()


def _begin(ray: Any, address: str | None, workers: int | None) -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            _knock(address)
            ray.init(address, **quiet)
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            ray.init("local", num_cpus=max(cores, workers or 1), include_dashboard=False, object_store_memory=STORE, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
        where = "Ray cannot be started here" if address is None else f"There is no Ray cluster to join at --address {address}"
        remedy = "; start one by `ray start --head`, or leave --address out" if address is not None else ""
        raise UserError(f"{where} ({said}){remedy}.") from error


def _knock(address: str) -> None:
    """An `OSError` if nothing listens at host:port, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def needs(ray: Any, given: dict[str, float]) -> str:
    """What each worker is to be given, in words, and how much of it nobody uses at this moment."""
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = ((name.removeprefix("num_").removesuffix("s").upper(), count) for name, count in given.items())
    return " and ".join(
        f"{count:g} {kind}{'s' * (count != 1)} ({free.get(kind, 0):g} of {total.get(kind, 0):g} free)" for kind, count in kinds
    )


def share(ray: Any, workers: int | None, device: str | None) -> tuple[int, dict[str, float]]:
    """How many workers there shall be, and what Ray is to reserve for each of them.

    With GPUs in reach a worker has one of them, and there are as many workers as GPUs unless told otherwise. Without, or if
    `device` is the CPU, there is one worker on each machine unless told otherwise, and a machine's CPUs are shared by its
    workers.

    Raises:
        UserError: there is no room for so many.
    """
    total = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(total.get("GPU", 0))
    machines = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    count = workers or gpus or len(machines)
    if gpus:
        if count > gpus:
            raise UserError(f"--workers {count} needs {count} GPUs and Ray sees {gpus}; ask for at most as many.")
        return count, {"num_gpus": 1, "num_cpus": 1}
    threads = max(1, int(min(machines, default=1)) // math.ceil(count / max(1, len(machines))))
    if count * threads > total.get("CPU", 0):
        raise UserError(
            f"--workers {count} needs {count} CPUs and Ray sees {total.get('CPU', 0):.0f}; ask for at most as many."
        )
    return count, {"num_cpus": threads}
