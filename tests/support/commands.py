"""A command of fastervlm, run in the process of the test."""

import sys

import pytest

from fastervlm import cli


def run_command(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["fastervlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err
