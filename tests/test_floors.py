"""Imports only go down: encoders, then fastervlm, then video; and no package knows the playground or the tests."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["encoders", "fastervlm", "video"]
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(tree, package):
    """Full names of all modules that a file imports, inside functions too; relative imports are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*parts, *filter(None, [node.module])])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def forbidden(floor):
    return {*FLOORS[FLOORS.index(floor) + 1 :], "playground", "tests", "scripts"}


def above(path, source):
    """The imports of a file that do not go down."""
    package = list(path.relative_to(ROOT).parts[:-1])
    return {name for name in imported(ast.parse(source), package) if name.split(".")[0] in forbidden(package[0])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    assert not above(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("encoders/x.py", "import fastervlm"),
        ("encoders/x.py", "from fastervlm.budget import TokenBudget"),
        ("encoders/x.py", "def f():\n    from .. import x\n    import video.frames as v"),
        ("fastervlm/eval/x.py", "import os, playground.bench"),
        ("fastervlm/eval/x.py", "import importlib\nimportlib.import_module('video')"),
        ("fastervlm/x.py", "if True:\n    from tests import tiny"),
        ("video/x.py", "from playground import scenes"),
    ],
)
def test_an_import_that_goes_up_is_found(place, source):
    assert above(ROOT / place, source)


@pytest.mark.parametrize("source", ["from . import video", "from encoders import wrap", "import videos", "x = 'import video'"])
def test_an_import_that_goes_down_is_not(source):
    assert not above(ROOT / "fastervlm" / "x.py", source)


def test_encoders_know_torch_alone():
    """Which tower it is, its class name says: no library of towers is imported to find out."""
    allowed = {"encoders", "torch", *sys.stdlib_module_names}
    for path in (ROOT / "encoders").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.split(".")[0] for node in tree.body for name in imported(node, ["encoders"])}
        assert names <= allowed, path


def test_every_floor_has_files():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FLOORS)
