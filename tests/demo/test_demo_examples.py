"""What the demo offers to ask about."""

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fastervlm.demo.examples import PHOTOGRAPHS, examples_for, is_photograph
from fastervlm.embedded import MODEL

FILES = sorted(PHOTOGRAPHS.glob("*.jpg"))


def engine(path, clips=False) -> Any:
    """As far as examples ask it."""
    return SimpleNamespace(shows_clips=clips, subject=SimpleNamespace(path=str(path)))


def test_photographs_are_small_and_say_where_they_come_from():
    assert len(FILES) == 4
    lines = (PHOTOGRAPHS / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    for file in FILES:
        assert file.stat().st_size < 60_000
        with Image.open(file) as picture:
            assert (picture.format, max(picture.size) <= 480, len(picture.getexif())) == ("JPEG", True, 0)
        (line,) = [line for line in lines if line.startswith(f"| `{file.name}`")]
        _, shows, by, licence, source = (cell.strip() for cell in line.strip("|").split("|"))
        assert licence in ("public domain", "CC0 1.0")
        assert shows
        assert by
        assert "<https://" in source


@pytest.mark.parametrize("model", [MODEL, "/nowhere/llava-1.5-7b"])
def test_what_the_tiny_model_knows_comes_first(model):
    """Other models are shown the photographs first; each example has a name of its own, which links say."""
    examples = examples_for(engine(model))
    kinds = [is_photograph(file) for file, _ in examples]
    assert kinds == ([False] * 6 + [True] * 4 if model == MODEL else [True] * 4 + [False] * 6)
    assert len({file.rpartition("/")[2] for file, _ in examples}) == 10
    assert all(question.endswith("?") for _, question in examples)


def test_without_a_mini_benchmark_there_are_photographs(monkeypatch, tmp_path):
    monkeypatch.setattr("fastervlm.demo.examples.MODEL", tmp_path / "none")
    assert len(examples_for(engine("/nowhere"))) == 4
    assert examples_for(engine("/nowhere", clips=True)) == []
