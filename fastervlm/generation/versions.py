"""What older versions of transformers cannot do right with pictures that are encoded beforehand."""

from __future__ import annotations

import transformers
from packaging.version import Version

from encoders import UserError


def needs_transformers(least: str, done: str, advice: str) -> None:
    """Refuse what the installed transformers cannot do right.

    Args:
        least: the first version that can.
        done: what is asked of it.
        advice: how to do without.

    Raises:
        UserError: the installed version is older.
    """
    if Version(transformers.__version__) < Version(least):
        raise UserError(
            f"transformers {transformers.__version__} cannot {done} under fastervlm.prune, as {least} and later can; {advice}."
        )
