"""Classes of transformers that answer questions about pictures and have no family of their own.

Their code is read, not imported.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NO_ROUTE = "its forward takes no features made beforehand (mm_encoder_outputs)"


@cache
def image_text_to_text() -> dict[str, str]:
    """All such classes by their names, and the `model_type` of each."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    found: dict[str, str] = {}
    for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        found.setdefault(name, kind)
    return found


def class_of_type(model_type: str) -> str | None:
    """The class of that `model_type`; None where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)


@cache
def why_refused(name: str) -> str | None:
    """The reason why models of one of these classes cannot be pruned; None if they may be."""
    return None if _takes_features(name) else NO_ROUTE


def refused() -> dict[str, str]:
    """Those that cannot be pruned, and the reason of each."""
    reasons = {name: why_refused(name) for name in sorted(image_text_to_text())}
    return {name: reason for name, reason in reasons.items() if reason}


def _takes_features(name: str) -> bool:
    """Whether `forward` of a class of transformers has the argument `mm_encoder_outputs`."""
    import transformers

    return _in_module(name, transformers._class_to_module[name])  # type: ignore[attr-defined]


def _in_module(name: str, module: str) -> bool:
    spec = find_spec(f"transformers.{module}")
    if spec is None or spec.origin is None:
        return False
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            forwards = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "forward"]
            if forwards:
                return "mm_encoder_outputs" in {arg.arg for part in forwards for arg in part.args.args}
            return any(_in_module(base.id, module) for base in node.bases if isinstance(base, ast.Name))
    return False
