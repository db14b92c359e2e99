"""What the packages export: `__all__` is the sorted truth, and nothing is loaded before it is asked for."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastervlm
from fastervlm import api, methods

ROOT = Path(__file__).parents[1]
PACKAGES = ["encoders", "fastervlm.api", "fastervlm.methods"]


def as_ruff_sorts(names):
    """Constants, then classes, then the rest."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


def written(tree):
    """The names in the literal `__all__` of a module."""
    (found,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    return ast.literal_eval(found)


def bound(tree):
    """The names that a module defines or takes from our own packages, for type checkers too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            own = (node.module or "").split(".")[0] in ("encoders", "fastervlm")
            names |= {alias.asname or alias.name for alias in node.names} if own else set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_the_sorted_truth(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    assert written(tree) == as_ruff_sorts(written(tree))
    assert len(package.__all__) == len(set(package.__all__))
    assert all(hasattr(package, each) for each in package.__all__)
    hidden = bound(tree) - set(package.__all__)
    assert hidden <= {"encoders": set(), "fastervlm.api": {"methods", "*"}, "fastervlm.methods": set()}[name]


def test_fastervlm_exports_the_api_and_every_method():
    assert set(fastervlm.__all__) == set(api.__all__) >= set(methods.__all__)
    assert all(getattr(fastervlm, name) is getattr(api, name) for name in api.__all__)
    assert set(fastervlm.__all__) <= set(dir(fastervlm))
    for name in ("methods_of_mine", "_api", "__wrapped__", "get_method"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(fastervlm, name)


def test_no_export_has_the_name_of_a_module():
    """Importing the module would put it in the place of what is exported under its name."""
    for package in ("encoders", "fastervlm", "video"):
        face = importlib.import_module(package)
        assert not {module.name for module in pkgutil.iter_modules(face.__path__)} & set(face.__all__)


def test_names_of_the_design():
    import encoders

    for name in ("TokenBudget", "KeptTokens", "ClsAttention", "RandomTokens", "UniformGrid", "PruneHandle", "prune", "load"):
        assert name in fastervlm.__all__
    for name in ("ScoredPatches", "VisionEncoder", "wrap"):
        assert getattr(fastervlm, name) is getattr(encoders, name)
    assert set(fastervlm.METHODS) >= {"cls", "random", "grid"}
    assert fastervlm.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["encoders", "fastervlm", "video"])
def test_the_packages_are_typed(name):
    assert (ROOT / name / "py.typed").exists()


def run(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=120)


def test_importing_is_light_and_changes_nothing():
    """No model library, no plotting, no command line is loaded by the import, and nothing of torch's is replaced."""
    run(
        "import sys, torch; before = dict(vars(torch.nn.Module)); import fastervlm; fastervlm.prune; "
        "assert dict(vars(torch.nn.Module)) == before; "
        "heavy = {'matplotlib', 'typer', 'rich', 'open_clip', 'timm', 'decord', 'gradio'} & set(sys.modules); "
        "assert not heavy, heavy"
    )


def test_the_packages_alone_load_no_library():
    run(
        "import sys; before = set(sys.modules); import encoders, encoders.errors, fastervlm, video; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); "
        "assert new == {'encoders', 'fastervlm', 'video'}, new"
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["eval", "--help"], ["video-qa", "--help"], ["evall"], ["eval", "-x"]]
)
def test_the_command_line_answers_without_torch(arguments):
    run(
        f"import sys; sys.argv = ['fastervlm', *{arguments}]\nfrom fastervlm.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )


@pytest.mark.parametrize(
    "arguments", [["data", "gqa"], ["score", "gqa", "--question-file", "no.json", "--result-file", "no.jsonl"]]
)
def test_what_needs_no_model_needs_no_torch(arguments):
    run(
        f"import sys; sys.argv = ['fastervlm', *{arguments}]\nfrom fastervlm.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
