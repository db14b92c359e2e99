"""Which files of a checkpoint of LLaVA's authors a run is of."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from fastervlm.eval.subject import Subject
from tests.support import original
from tests.support.original import hashes
from tests.support.original_damage import another_norm, changed, edited


def other_weights(folder):
    torch.save(
        {name: value + 1 for name, value in torch.load(folder / "pytorch_model.bin").items()}, folder / "pytorch_model.bin"
    )


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda folder: other_weights(folder.parent / "tower"), (True, False)),
        (lambda folder: (folder.parent / "tower" / "preprocessor_config.json").write_text("{}"), (False, True)),
        (lambda folder: changed(more=1)(folder.parent / "tower"), (False, True)),
        (lambda folder: changed(more=1)(folder), (False, True)),
        (edited(another_norm), (True, False)),
        (lambda folder: save_file({"x": torch.ones(1)}, folder / "adapter.safetensors"), (False, False)),
        (lambda folder: (folder.parent / "tower" / "training_args.bin").touch(), (False, False)),
    ],
)
def test_the_files_that_are_read_are_a_runs_identity(spoilt, change, differs):
    before = hashes(spoilt)
    change(spoilt)
    assert tuple(one != other for one, other in zip(before, hashes(spoilt), strict=True)) == differs


def test_safetensors_are_read_where_both_are_there(spoilt):
    state = {name: value for file in spoilt.glob("*.bin") for name, value in torch.load(file).items()}
    save_file(state, spoilt / "model.safetensors")
    before = hashes(spoilt)
    for file in spoilt.glob("*.bin"):
        file.unlink()
    assert hashes(spoilt) == before


def test_a_tower_inside_is_hashed_once(scratch, tmp_path):
    folder = original.write(original.stock(), tmp_path / "tiny", scratch, inside=True, count=1)
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin.index.json").write_text("of shards that are gone")  # transformers prefers the one file too
    assert Subject(str(folder), device="cpu").weights_sha256 == hashlib.sha256(data).hexdigest()
