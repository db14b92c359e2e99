"""A checkpoint of LLaVA's authors is converted once for an engine; one of transformers is left where it is."""

import json

import pytest

from fastervlm.serving import checkpoint
from fastervlm.serving.checkpoint import readable
from tests.support import original
from tests.support.tiny import save_llava


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastervlm" / "converted"


def test_a_checkpoint_of_transformers_stays_where_it_is(cache, tmp_path):
    model = str(save_llava(tmp_path / "m"))
    name, told = readable(model)
    assert (name, told["model_type"]) == (model, "llava")
    assert not cache.exists()


def test_one_of_the_authors_is_converted_once_with_a_word(cache, monkeypatch, capsys, tmp_path):
    (tmp_path / "scratch").mkdir()
    source = original.write(original.stock(), tmp_path / "tiny", tmp_path / "scratch")
    target, told = readable(str(source))
    assert told["model_type"] == json.loads((cache / target / "config.json").read_text())["model_type"] == "llava"
    assert capsys.readouterr().err.count(f"converted once, into {target}") == 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "convert", lambda *_: pytest.fail("it was converted already"))
        assert readable(str(source))[0] == target
    assert "converted" not in capsys.readouterr().err
    (source / "generation_config.json").write_text("{}")
    assert readable(str(source))[0] != target
