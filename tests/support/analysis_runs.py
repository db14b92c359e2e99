"""Runs of the analyses: settings, scripts, and runs whose plots are left out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DRAWING = [
    *(f"shift.{name}" for name in ("draw_story", "draw_layers", "draw_spread", "draw_grid", "draw_by_layer")),
    *(f"dispersion.{name}" for name in ("draw_by_layer", "draw_curves", "draw_curves_by_layer", "draw_histogram")),
]


@pytest.fixture
def undrawn(monkeypatch):
    """Plots take most of the time of such a short run; what they would show is kept by path."""
    drawn: dict[str, Any] = {}

    def draw(*given):
        (path,) = (each for each in given if isinstance(each, Path))
        drawn[path.name] = given
        Image.new("RGB", (4, 4)).save(path)

    for name in DRAWING:
        monkeypatch.setattr(f"fastervlm.analysis.{name}", draw)
    return drawn


def asked(settings, **changes):
    return settings(keep=None, annotation_file=None, **({"limit": 4} | changes))


def script(tmp_path, name, *arguments, **environment):
    """Run a script from another working directory."""
    named = ("CKPT", "DATA", "IMAGES", "ANYRES", "LIMIT", "OUT")
    clean = {key: value for key, value in os.environ.items() if key not in named}
    settings = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / f"analyze_attn_{name}.sh"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=clean | {"PYTHON": sys.executable} | settings,
    )
