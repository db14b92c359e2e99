"""What `make test-vllm` does where vLLM cannot be installed, takes too long, or fails its tests; with stand-ins for both."""

import os
import subprocess

import pytest

from tests.support.served import ROOT


def program(file, does):
    """A program of bash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{does}\n")
    file.chmod(0o755)
    return file


def run(environment, **settings):
    """The exit code, and what was said."""
    command = ["bash", "tests/serving/run_vllm.sh", str(environment), "vllm"]
    env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("does", "limit", "said"),
    [("exit 1", "", "cannot be installed here"), ("sleep 250", 1, "was not installed within 1 s")],
)
def test_what_cannot_be_installed_is_skipped_with_the_reason(tmp_path, does, limit, said):
    python = program(tmp_path / "python", does)
    code, errors = run(tmp_path / "new", PYTHON=python, INSTALL_LIMIT=limit)
    assert code == 0
    assert said in errors
    assert "its tests are skipped" in errors


@pytest.mark.parametrize(
    ("does", "limit", "code", "said"),
    [
        ("exit 0", "", 0, ""),
        ("exit 1", "", 1, ""),
        ("exit 1", 200, 1, ""),
        ("kill -9 $$", 200, 137, ""),
        ("kill -9 $$", "", 137, ""),
        ("sleep 250", 1, 0, "vLLM's tests took longer than 1 s here and were stopped"),
    ],
)
def test_tests_that_fail_fail_and_those_that_take_too_long_are_stopped(tmp_path, does, limit, code, said):
    program(tmp_path / "bin" / "python", does)
    (tmp_path / ".installed").touch()
    found, errors = run(tmp_path, TEST_LIMIT=limit)
    assert found == code, errors
    assert said in errors
