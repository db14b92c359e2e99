"""Other libraries are silent in a log, this project's warnings are sentences, and whoever wants to hear all can."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOUD = """
import logging, warnings
from fastervlm.commands.quiet import hush
hush()
from encoders.errors import UserNote
warnings.warn("raw warning", FutureWarning)
warnings.warn("The clip is odd.", UserNote)
logging.getLogger("somebody").warning("log line")
logging.getLogger("somebody").error("real error")
from transformers.utils import logging
logging.get_logger("transformers.x").warning("note of transformers")
for _ in logging.tqdm(range(3), desc="Loading weights"):
    pass
"""


def said(command, **environ):
    """What a process says on its standard error, which is no terminal."""
    names = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=kept | environ, capture_output=True, text=True, check=True)
    return done.stderr


def test_only_errors_and_our_own_warnings_are_heard():
    assert said(["-c", LOUD]).splitlines() == ["fastervlm: The clip is odd.", "real error"]


@pytest.mark.parametrize(
    ("environ", "heard"),
    [
        ({"PYTHONWARNINGS": "default"}, ["FutureWarning: raw warning", "UserNote: The clip is odd."]),
        ({"TRANSFORMERS_VERBOSITY": "warning"}, ["note of transformers"]),
        ({"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, ["Loading weights"]),
    ],
)
def test_whoever_asks_hears_more(environ, heard):
    found = said(["-c", LOUD], **environ)
    assert all(text in found for text in heard)


def test_the_log_of_a_run_holds_its_own_lines_alone(model, bench, tmp_path):
    options = [text for name, path in bench.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    out = tmp_path / "out" / "a.jsonl"
    command = ["-m", "fastervlm.cli", "eval", "textvqa", "--model", str(model), *options, "--answers-file", str(out)]
    lines = said([*command, "--max-new-tokens", "2"]).splitlines()
    expected = [
        rf"Answers go to {re.escape(str(out))}; until the run is complete they collect in a\.jsonl\.partial beside it\.",
        r"questions: 10 of 10 \(100 %\), [\d.]+/(s|min), took 0:\d\d:\d\d, 10 answered, 0 failed",
    ]
    assert len(lines) == len(expected), lines
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=True)), lines
