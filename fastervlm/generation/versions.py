"""What older versions of transformers cannot do right with pictures that are encoded beforehand."""

from __future__ import annotations

import transformers
from packaging.version import Version

from encoders import UserError


def is_older(least: str) -> bool:
    """Whether the installed transformers is older than a version."""
    return Version(transformers.__version__) < Version(least)


def needs_transformers(least: str, done: str, advice: str) -> None:
    """Refuse what the installed transformers cannot do right.

    Args:
        least: the first version that can.
        done: what is asked of it.
        advice: how to do without.

    Raises:
        UserError: the installed version is older.
    """
    if is_older(least):
        raise UserError(
            f"transformers {transformers.__version__} cannot {done} under fastervlm.prune, as {least} and later can; {advice}."
        )
