"""Libraries that only some need: extras of the package."""

from __future__ import annotations

from importlib.util import find_spec

from encoders.errors import UserError


def need(modules: str, extra: str, what: str) -> None:
    """Refuse to go on without the libraries of an extra.

    Args:
        modules: what is imported of it, separated by spaces.
        extra: its name in pyproject.toml.
        what: cannot be done without it, as the subject of a sentence.

    Raises:
        UserError: one of them is not installed.
    """
    missing = [name for name in modules.split() if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}; install it with: pip install 'fastervlm[{extra}]'.")
