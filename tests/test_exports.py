"""What the packages export: `__all__` is the sorted truth."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["encoders", "fastervlm", "fastervlm.methods"]


def as_ruff_sorts(names):
    """Constants, then classes, then the rest."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_the_sorted_truth(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    bound = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            own = (node.module or "").split(".")[0] in ("encoders", "fastervlm")
            bound |= {alias.asname or alias.name for alias in node.names} if own else set()
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id for target in targets if isinstance(target, ast.Name)}
    public = {name for name in bound if not name.startswith("_")}
    assert package.__all__ == as_ruff_sorts(package.__all__)
    assert len(package.__all__) == len(set(package.__all__))
    assert all(hasattr(package, name) for name in package.__all__)
    hidden = public - set(package.__all__)
    assert hidden <= ({"KeptTokens", "ScoredPatches", "UserError", "HfClipEncoder"} if name != "fastervlm" else set())


def test_names_of_the_design():
    import encoders
    import fastervlm

    for name in ("TokenBudget", "KeptTokens", "ClsAttention", "RandomTokens", "UniformGrid", "PruneHandle", "prune", "load"):
        assert name in fastervlm.__all__
    for name in ("ScoredPatches", "VisionEncoder", "wrap"):
        assert getattr(fastervlm, name) is getattr(encoders, name)
    assert set(fastervlm.METHODS) >= {"cls", "random", "grid"}
    assert fastervlm.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["encoders", "fastervlm", "video"])
def test_the_packages_are_typed(name):
    assert (ROOT / name / "py.typed").exists()


def test_importing_is_light_and_changes_nothing():
    """No model library, no plotting, no command line is loaded by the import, and nothing of torch's is replaced."""
    code = (
        "import sys, torch; before = dict(vars(torch.nn.Module)); import fastervlm; "
        "assert dict(vars(torch.nn.Module)) == before; "
        "heavy = {'matplotlib', 'typer', 'rich', 'open_clip', 'timm', 'decord', 'gradio'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=120)
