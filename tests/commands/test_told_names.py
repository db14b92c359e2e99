"""What help and completion tell is what there is, and they tell it without a model library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastervlm import METHODS, cli, embedded
from fastervlm.bench.shapes import SHAPES
from fastervlm.commands import names
from fastervlm.eval import TASKS
from fastervlm.families.registry import FAMILIES, GENERIC
from tests.support.commands import run_command

ROOT = Path(__file__).parents[2]
WORDS_OF_KINDS = {word for kind in names.KINDS.values() for word in kind.split()}


def test_names_are_those_of_the_tables():
    assert tuple(TASKS) == names.TASKS
    assert tuple(METHODS) == names.METHODS
    assert tuple(SHAPES) == names.SHAPES
    assert names.TINY == embedded.NAMES
    wheel = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("only-include")[1].split("]")[0]
    assert tuple(name for name in names.TINY if f'"playground/models/{name}"' in wheel) == names.SHIPPED
    assert tuple(names.KINDS) == tuple(family.model_type for family in (*FAMILIES, *GENERIC))


def test_the_last_of_several_names_is_completed():
    complete = names.list_completer(("cls", "cls-lowest", "random"))
    assert complete("cl") == ["cls", "cls-lowest"]
    assert complete("random,cl") == ["random,cls", "random,cls-lowest"]
    assert complete("random,x") == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([], [*TASKS, *METHODS, *WORDS_OF_KINDS]),
        (["eval"], [*TASKS, *METHODS, *names.SHIPPED]),
        (["compare"], [*TASKS, *METHODS, *names.SHIPPED]),
        (["ask"], [*METHODS, *names.SHIPPED, *WORDS_OF_KINDS]),
        (["bench", "shape"], [*SHAPES, *METHODS]),
        (["bench", "model"], [*METHODS, *names.SHIPPED]),
        (["plan"], [*SHAPES]),
        (["video-qa"], [*METHODS, *names.SHIPPED]),
    ],
)
def test_help_names_them_all(monkeypatch, capsys, command, told):
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr(cli, "add_commands", _once(cli.add_commands))
    code, out, _ = run_command(monkeypatch, capsys, *command, "--help")
    assert code == 0
    words = {word.strip(".,;:()│") for word in out.split()}
    assert not set(told) - words


_ADDED = []


def _once(add):
    """The commands of other packages stay registered in this process."""
    return lambda: _ADDED or _ADDED.append(add())


COMPLETED = [
    ("fastervlm b", "bench"),
    ("fastervlm eval tex", "textvqa"),
    ("fastervlm eval textvqa --method visp", "vispruner"),
    ("fastervlm compare --methods cls,visi", "cls,visionzip"),
    ("fastervlm ask --model tiny-v", "tiny-video-llava"),
    ("fastervlm bench shape llava-1.5-1", "llava-1.5-13b"),
    ("fastervlm video-qa --met", "--method"),
]


@pytest.mark.parametrize(("typed", "expected"), COMPLETED)
def test_bash_completes(typed, expected):
    words = typed.split(" ")
    asked = {"_FASTERVLM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    code = (
        "import sys\nfrom fastervlm.cli import main\nsys.argv = ['fastervlm']\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert expected in done.stdout.split("\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell):
    asked = {"_FASTERVLM_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-m", "fastervlm.cli"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert "_FASTERVLM_COMPLETE" in done.stdout
