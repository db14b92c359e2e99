"""`fastervlm towers`: the table of supported towers, whole and readable in a terminal of 80 columns."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest
import typer
from typer.testing import CliRunner

from encoders import TOWERS
from fastervlm.commands import towers as module

LIBRARIES = {"transformers": "transformers", "fastervlm": "fastervlm", "open_clip": "open_clip_torch", "timm": "timm"}


@pytest.fixture
def listed():
    """Run the command as a program of its own, in a terminal of 80 columns; gives what it prints."""
    app = typer.Typer()
    app.command()(module.towers)

    def run():
        result = CliRunner().invoke(app, env={"COLUMNS": "80"})
        assert result.exit_code == 0
        return result.stdout

    return run


def test_each_line_of_the_table_is_printed_whole(listed):
    out = listed()
    assert max(map(len, out.splitlines())) <= 80
    header, *rows, note = re.split(r"\n\s*\n", out)
    assert header.split() == ["library", "class", "name", "score", "tested"]
    assert "pool that of the pooling head's probe" in " ".join(note.split())
    for row, tower in zip(rows, TOWERS, strict=True):
        expected = [tower.library, *tower.classes, *tower.names, *tower.score, tower.tested]
        assert sorted(row.split()) == sorted(expected)


def test_the_versions_here_stand_beside_the_tested(listed):
    out = " ".join(listed().split())
    installed = ", ".join(f"{library} {version(package)}" for library, package in LIBRARIES.items())
    assert out.endswith(f"Installed: {installed}.")


ADVICE = "Install what is missing with: pip install 'fastervlm[towers]'."


def test_another_version_and_a_missing_library_are_no_mistake(listed, monkeypatch):
    def found(package):
        if package == "timm":
            raise PackageNotFoundError(package)
        return "99.9"

    monkeypatch.setattr(module, "version", found)
    out = " ".join(listed().split())
    assert out.endswith(f"Installed: transformers 99.9, fastervlm 99.9, open_clip 99.9, timm missing. {ADVICE}")
    assert all(tower.tested in out for tower in TOWERS)
