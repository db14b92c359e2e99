"""The commands of a shell block, and whether the program that each names would take it."""

import argparse
import importlib
import itertools
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from fastervlm import cli
from tests.support.readmes import ROOT

LIGHT = {"models", "towers", "plan", "ask"}  # these run as they stand
MOST = 32  # and so do commands that are limited to so many questions,
LONG = {"video-qa", "video-compare"}  # but for those whose benchmark takes a minute to draw
ABOUT = {"report", "reproduce"}  # these run where what they are about is there


def commands(text):
    """The commands of a block, each as (variables set in front of it, its words)."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|", ";"):
                words.append(word)
            elif words:
                count = next((i for i, each in enumerate(words) if not re.match(r"[A-Z_]+=", each)), len(words))
                found.append((dict(each.split("=", 1) for each in words[:count]), words[count:]))
                words = []
    return found


def is_light(words):
    """Whether a command is run, rather than only read."""
    if words[0] != "fastervlm" or words[1] in LONG or any(word.isupper() for word in words):
        return False
    if words[1] in ABOUT:
        return Path(words[2]).exists()
    if any("/" in word and not Path(word).exists() for word in named(words, "--model")):
        return False
    limit = int(*named(words, "--limit") or [MOST + 1])
    return words[1] in LIGHT or {"--version", "--help"} & set(words) or limit <= MOST


def named(words, option):
    """The values that an option is given."""
    return [value for name, value in itertools.pairwise(words) if name == option]


def check(variables, words, monkeypatch):
    """Fail where the program would not understand these words."""
    program, *rest = words
    if program == "fastervlm":
        return _check_typer(_app(), rest)
    if program == "python":
        return _check_module(rest, monkeypatch)
    if program == "bash":
        return _check_script(variables, rest)
    if program == "pytest":
        paths = [word.partition("::")[0] for word in rest if "/" in word]
        return _all(paths and all((ROOT / path).exists() for path in paths), words)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return _all(set(rest) <= set(targets), words)
    if program == "pip":
        return _check_pip(rest)
    return _all(program in ("git", "cd", "export"), words)


def _all(fine, words):
    assert fine, f"not understood: {shlex.join(words)}"


def _app():
    if not any(command.name == "video-qa" for command in cli.app.registered_commands):
        cli.add_commands()
    return typer.main.get_command(cli.app)


def _check_typer(command, words):
    """Parse the words as the command line does, without running anything."""
    given = [re.sub(r"^[A-Z]+$", "1", word) for word in words]  # a placeholder stands for a value of any kind
    context = command.make_context("fastervlm", given)
    while hasattr(command, "resolve_command"):
        name, command, given = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, given, parent=context)


class _Parsed(Exception):
    pass


def _check_module(words, monkeypatch):
    """Let a module of ours parse its words, and stop it there."""
    assert words[0] == "-m", f"python {shlex.join(words)}: scripts are called by -m"
    name, given = words[1], words[2:]
    assert find_spec(name), name
    if name == "video":
        return _check_typer(_app(), given)
    if name.split(".")[0] != "playground":
        return None
    module = importlib.import_module(name)

    if not hasattr(module, "argparse"):
        return _all(not given, words)
    original = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        original(parser, *args, **kwargs)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *given])
        try:
            module.main()
        except _Parsed:
            return None
    return _all(False, words)


def _check_script(variables, words):
    """The script is there and tells of every variable that is set for it."""
    script = ROOT / words[0]
    assert script.is_file(), words[0]
    told = "".join(path.read_text() for path in [script, *(ROOT / "scripts").glob("_*.sh"), *script.parents[1].glob("_*.sh")])
    for name in set(variables) - {"CUDA_VISIBLE_DEVICES"}:
        assert re.search(rf"^# +{name} ", told, re.MULTILINE), f"{words[0]} does not tell of {name}"


def _check_pip(words):
    """The extras that it names are there."""
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", project, re.MULTILINE | re.DOTALL)
    known = set(re.findall(r"^([\w-]+) = ", extras[1] if extras else "", re.MULTILINE))
    for named in re.findall(r"(?:fastervlm|\.)\[([\w,-]+)\]", " ".join(words)):
        assert set(named.split(",")) <= known, named
