"""The house: an import only goes down, no module is part of a circle, and no package knows the playground or the tests.

Imports inside functions and under TYPE_CHECKING count as all others do.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("encoders", "fastervlm", "video")
# From the ground up. A module lives on the floor of the longest name that its own begins with; what stands on the same floor
# may know each other, as long as there is no circle.
FLOORS = (
    ("encoders", "fastervlm.reporting", "fastervlm.pictures", "fastervlm.embedded"),
    ("fastervlm.selection",),
    ("fastervlm.families",),
    ("fastervlm.checkpoints", "fastervlm.generation", "fastervlm.handle"),
    ("fastervlm.inllm",),
    ("fastervlm.methods",),
    ("fastervlm.prune_model", "fastervlm.patches", "fastervlm.overlays"),
    ("fastervlm.api",),
    ("fastervlm",),
    ("fastervlm.eval",),
    (
        "fastervlm.ask",
        "fastervlm.bench",
        "fastervlm.analysis",
        "fastervlm.demo",
        "fastervlm.lmms",
        "fastervlm.serving",
        "fastervlm.tune",
    ),
    ("fastervlm.commands", "fastervlm.cli"),
    ("video",),
)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def floor(name):
    """How high a module stands; above all floors where it is none of ours."""
    levels = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    parts = name.split(".")
    begins = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((levels[room] for room in begins if room in levels), len(FLOORS))


def imported(tree, package):
    """Full names of all modules that a file imports; relative imports are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            modules = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in FILES]
            yield from modules or [base]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            # A name that is chosen among constants is each of them.
            found = (each.value for arg in node.args[:1] for each in ast.walk(arg) if isinstance(each, ast.Constant))
            yield from (name for name in found if isinstance(name, str))


def own(name):
    return name.split(".")[0] in (*PACKAGES, "playground", "tests", "scripts")


def above(name, source):
    """The imports of a module that do not go down."""
    package = name.split(".") if FILES.get(name, Path()).name == "__init__.py" else name.split(".")[:-1]
    return {each for each in imported(ast.parse(source), package) if own(each) and floor(each) > floor(name)}


def circles(graph):
    """Sets of modules that can each be reached from each other, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            circle = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(circle) > 1:
                found.append(circle)

    for name in graph:
        if name not in index:
            visit(name)
    return found


def graph_of(sources):
    """Whom each module imports, itself apart."""
    known = {name: ast.parse(source) for name, source in sources.items()}
    return {
        name: {other for other in imported(tree, name.split(".")[:-1]) if other in known and other != name}
        for name, tree in known.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_imports_only_go_down(name):
    assert not above(name, FILES[name].read_text(encoding="utf-8"))


def test_there_is_no_circle():
    assert circles(graph_of({name: path.read_text(encoding="utf-8") for name, path in FILES.items()})) == []


def test_every_floor_is_lived_on():
    """A module that moves out takes its line along; nothing lives outside."""
    assert {floor(name) for name in FILES} == set(range(len(FLOORS)))
    assert all(room in FILES for rooms in FLOORS for room in rooms)


def test_few_modules_stand_outside_the_rooms():
    root = sorted(path.name for path in (ROOT / "fastervlm").glob("*.py"))
    assert len(root) <= 9, root


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("encoders.x", "import fastervlm"),
        ("encoders.x", "from fastervlm.selection.budget import TokenBudget"),
        ("encoders.x", "def f():\n    from .. import x\n    import video.frames as v"),
        ("fastervlm.selection.x", "from fastervlm.methods import METHODS"),
        ("fastervlm.selection.x", "from fastervlm.families import registry"),
        (
            "fastervlm.families.x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastervlm.prune_model import prune",
        ),
        ("fastervlm.families.x", "from fastervlm.generation.inputs import Call"),
        ("fastervlm.inllm.x", "def f():\n    import fastervlm"),
        ("fastervlm.eval.x", "import os, playground.bench"),
        ("fastervlm.eval.x", "from fastervlm.bench import speed"),
        ("fastervlm.eval.x", "import importlib\nimportlib.import_module('video')"),
        ("fastervlm.eval.x", "import importlib\nimportlib.import_module('fastervlm.cli' if x else 'os')"),
        ("fastervlm.x", "if True:\n    from tests import tiny"),
        ("video.x", "from playground import scenes"),
    ],
)
def test_an_import_that_goes_up_is_found(name, source):
    assert above(name, source)


@pytest.mark.parametrize("source", ["from . import video", "from encoders import wrap", "import videos", "x = 'import video'"])
def test_an_import_that_goes_down_is_not(source):
    assert not above("fastervlm.x", source)


@pytest.mark.parametrize(
    "sources",
    [
        {"a": "from b import x", "b": "import a"},
        {"a": "import b", "b": "def f():\n    from c import x", "c": "if TYPE_CHECKING:\n    import a"},
        {"a": "import importlib\nimportlib.import_module('b')", "b": "import a"},
    ],
)
def test_a_circle_is_found(sources):
    (circle,) = circles(graph_of(sources | {"d": "import a, b"}))
    assert circle == set(sources)


def test_a_chain_is_no_circle():
    assert circles(graph_of({"a": "import b, c", "b": "import c", "c": "import d, os", "d": ""})) == []


def test_encoders_know_torch_alone():
    """Which tower it is, its class name says: no library of towers is imported to find out."""
    allowed = {"encoders", "torch", *sys.stdlib_module_names}
    for path in (ROOT / "encoders").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.split(".")[0] for node in tree.body for name in imported(node, ["encoders"])}
        assert names <= allowed, path
