"""Classes of transformers that answer questions about pictures and belong to no family, and why none of them is pruned."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from fastervlm.families.registry import FAMILIES

UNPROVEN = "nobody has shown yet that what is pruned of it equals the stock model"
NO_ROUTE = "its forward takes no features made beforehand (mm_encoder_outputs)"


def refused() -> dict[str, str]:
    """The classes by their names, and the reason of each; their code is read, not imported."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    own = {family.class_name for family in FAMILIES}
    names = [name for name in dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) if name not in own]
    modules: dict[str, str] = transformers._class_to_module  # type: ignore[attr-defined]
    return {name: UNPROVEN if _takes_features(name, modules[name]) else NO_ROUTE for name in sorted(names)}


def _takes_features(name: str, module: str) -> bool:
    """Whether `forward` of a class, in that module of transformers, has the argument."""
    spec = find_spec(f"transformers.{module}")
    if spec is None or spec.origin is None:
        return False
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            forwards = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "forward"]
            if forwards:
                return "mm_encoder_outputs" in {arg.arg for part in forwards for arg in part.args.args}
            return any(_takes_features(base.id, module) for base in node.bases if isinstance(base, ast.Name))
    return False
