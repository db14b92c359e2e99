"""Whether a value may be read: on a device that makes the host wait for all work before it."""

from __future__ import annotations

import torch
from torch import Tensor


def waits(x: Tensor) -> bool:
    """Whether to read a value of x would make the host wait, or cannot be done at all while `torch.compile` traces."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()
