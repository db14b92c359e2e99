"""The packages `encoders` and `video` have names that others use too: what stands before them on Python's path hides them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def shadow(name: str) -> str | None:
    """What hides a package that is installed with this one, in a sentence; None if nothing does.

    Args:
        name: "encoders" or "video".
    """
    own = Path(__file__).resolve().parents[2] / name
    found = _found(name)
    if found is not None and found.resolve().parent == own:
        return None
    where = "No package" if found is None else str(found)
    return (
        f"fastervlm needs its own package {name}, in the place of which Python finds this: {where}. Give that another name, or "
        "keep its folder off Python's path (python -P, or another working folder)."
    )


def _found(name: str) -> Path | None:
    """The file that `import` would run, or has run."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module that was put there by hand
        return Path(getattr(sys.modules[name], "__file__", None) or name)
    if spec is None:
        return None
    return Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or [name])), "__init__.py")
