"""What other libraries say while a command runs: kept out of its output, and so out of the logs of long jobs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

from encoders.errors import UserNote


def hush() -> None:
    """Let other libraries be silent: no bars where no terminal shows them, no notes of their own, no raw warnings.

    Errors stay, and so do this project's own warnings, each as one sentence. Whoever sets TRANSFORMERS_VERBOSITY,
    HF_HUB_DISABLE_PROGRESS_BARS or PYTHONWARNINGS is heeded. It must come before those libraries are imported.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)  # where libraries write that were given no place to
    if not sys.warnoptions:
        warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserNote):
        print(f"fastervlm: {message}", file=file or sys.stderr)
