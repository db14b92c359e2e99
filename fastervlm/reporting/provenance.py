"""The command, the versions and the machine that results were made with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")


def program() -> dict[str, Any]:
    """The command that runs and the versions it runs with, for the file its results go to."""
    versions = {name: _version(name) for name in ("torch", "transformers", "fastervlm")}
    command = shlex.join(["fastervlm", *sys.argv[1:]])
    return {"command": command, "versions": {"python": platform.python_version(), **versions}}


def machine(device: torch.device) -> dict[str, Any]:
    """What the program runs on besides: the device by its name, the processor, the threads."""
    import torch

    return {
        "device": device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "platform": platform.platform(),
    }


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The device, a GPU with what it is called."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    return _of_cpu("model name") or platform.processor() or platform.machine()


def by_intel() -> bool:
    """Whether Intel made the CPU, by its vendor where that is told: a virtual machine may give it another name."""
    return "intel" in (_of_cpu("vendor_id") or processor()).lower()


def _of_cpu(name: str) -> str:
    """What Linux tells of the first CPU; empty where it tells nothing."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
