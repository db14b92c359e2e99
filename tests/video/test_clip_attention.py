"""Attention shift and dispersion of questions about clips, frame by frame."""

from pathlib import Path

import numpy as np
from PIL import Image

from fastervlm.analysis import KINDS, attn_dispersion, attn_shift
from tests.support.tiny import PATCHES


def draw(*given):
    """Plots take most of the time of such a short run."""
    (path,) = (each for each in given if isinstance(each, Path))
    Image.new("RGB", (4, 4)).save(path)


def test_questions_about_clips_are_analysed_by_frames(subject, settings, tmp_path, monkeypatch):
    for name in ("draw_spread", "draw_grid", "draw_layers", "draw_story", "draw_by_layer"):
        monkeypatch.setattr(f"fastervlm.analysis.shift.{name}", draw)
    for name in ("draw_by_layer", "draw_curves", "draw_curves_by_layer", "draw_histogram"):
        monkeypatch.setattr(f"fastervlm.analysis.dispersion.{name}", draw)
    chosen, out = settings(keep=None, limit=3), tmp_path / "out"
    shift, dispersion = attn_shift(subject, chosen, out), attn_dispersion(subject, chosen, out)
    frames = [f"frame_{frame}" for frame in range(1, chosen.medium.num_frames + 1)]
    assert list(shift["units"]) == [*frames, "run"]
    assert shift["mean_visual_tokens"] == len(frames) * (1 + PATCHES)
    assert shift["tokens_without_patch"]["questions"] == shift["questions"] == 3
    numbers = np.load(out / "attn_shift.npz")
    for kind in KINDS:
        received = [numbers[f"{frame}/attention/{kind}"] for frame in frames]
        assert np.isfinite(received).all()
        assert not np.allclose(received[0], received[1])
    assert list(dispersion["together"]) == ["frame", "run"]
    assert dispersion["together"]["frame"]["questions"] == 3 * len(frames)
    assert {path.stem for path in (out / "units").iterdir()} == set(frames[1:])
    assert "agree most and least" not in (out / "attn_dispersion.html").read_text()
    assert not (out / "examples").exists()
