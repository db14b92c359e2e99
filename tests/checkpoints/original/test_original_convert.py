"""Converting checkpoints of LLaVA's authors, and the command that does it."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

import fastervlm
from fastervlm import UserError
from fastervlm.checkpoints.original import convert
from fastervlm.commands.convert import convert as command
from tests.support import original
from tests.support.checks import one_sentence
from tests.support.original import WAYS, asked


@pytest.mark.parametrize(("kind", "files", "inside"), WAYS)
def test_converted_is_unconverted(kind, files, inside, scratch, tmp_path):
    folder = original.write(original.stock(kind), tmp_path / "tiny", scratch, files=files, inside=inside)
    assert convert(folder, tmp_path / "new" / "made") == tmp_path / "new" / "made"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["made"]
    (model, processor), (made, its) = (fastervlm.load(path, device="cpu") for path in (folder, tmp_path / "new" / "made"))
    state = made.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    batch, same = asked(processor), asked(its)
    plain = AutoProcessor.from_pretrained(tmp_path / "new" / "made")
    for other in (same, asked(plain)):
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert processor.chat_template == its.chat_template
    for keep in (None, 5):
        answers = []
        for each in (model, made):
            assert each.generation_config.eos_token_id == 2
            with fastervlm.prune(each, keep) if keep else nullcontext():
                answers.append(each.generate(**batch, max_new_tokens=8))
        assert torch.equal(*answers)


def test_weights_are_converted_as_they_are_stored(whole, scratch, tmp_path):
    model = original.stock()
    folder = original.write(model, tmp_path / "half" / "tiny", scratch)
    for file in folder.glob("*.bin"):
        torch.save({name: value.half() for name, value in torch.load(file).items()}, file)
    convert(folder, tmp_path / "made")
    state = load_file(tmp_path / "made" / "model.safetensors")
    kinds = {("vision" in name, value.dtype) for name, value in state.items()}
    assert kinds == {(True, torch.float32), (False, torch.float16)}
    for dtype in ("float32", "float16"):
        (ours, _), (theirs, _) = (fastervlm.load(path, device="cpu", dtype=dtype) for path in (folder, tmp_path / "made"))
        same = theirs.state_dict()
        assert all(torch.equal(value, same[name]) for name, value in ours.state_dict().items())
    convert(folder, tmp_path / "cast", dtype="bfloat16")
    assert {value.dtype for value in load_file(tmp_path / "cast" / "model.safetensors").values()} == {torch.bfloat16}


def test_an_empty_folder_is_filled(whole, tmp_path):
    (tmp_path / "made").mkdir()
    convert(whole, tmp_path / "made")
    fastervlm.load(tmp_path / "made", device="cpu")


def test_what_is_there_is_left_alone(whole, tmp_path):
    for name in ("folder", "file"):
        target = tmp_path / name
        if name == "folder":
            target.mkdir()
            (target / "precious").touch()
        else:
            target.touch()
        with pytest.raises(UserError, match="is already there; give a folder that is not there yet, or an empty one") as caught:
            convert(whole, target)
        one_sentence(caught.value)
    assert (tmp_path / "folder" / "precious").exists()


def test_nothing_is_left_of_a_conversion_that_fails(spoilt, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(UserError, match=r"made cannot be written \(No space left on device\); make room"):
        convert(spoilt, tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "tower"}


def test_nothing_to_convert(tmp_path):
    original.stock().save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match="there is nothing to convert"):
        convert(tmp_path / "stock", tmp_path / "made")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_cannot_be_read(spoilt, tmp_path, text):
    (spoilt / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"The config\.json of .*tiny cannot be read \(.*\); download it again") as caught:
        convert(spoilt, tmp_path / "made")
    one_sentence(caught.value)


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_at_all(tmp_path, name):
    with pytest.raises(UserError, match="The name of the checkpoint is empty; give a folder"):
        convert(name, tmp_path / "made")


def test_the_command_says_what_it_did(whole, tmp_path, capsys):
    command(str(whole), tmp_path / "made", dtype="float16", vision_tower=str(whole.parent / "tower"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Reading {whole} ..."
    assert lines[-1] == f"Converted checkpoint: {tmp_path / 'made'} (0.00 GB of weights in 1 files)"


def test_the_help_of_the_folder_to_write():
    assert (
        get_type_hints(command, include_extras=True)["target"]
        .__metadata__[0]
        .help.endswith("must not be there yet, or be empty.")
    )


def test_the_command_is_light():
    """Naming the command costs no torch: heavy imports wait until it runs."""
    source = Path(sys.modules[command.__module__].__file__ or "").read_text()
    assert "import torch" not in source
