"""Loading damaged checkpoints, and one that would run code."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastervlm
from fastervlm import UserError, UserTypeError
from tests.support import tiny
from tests.support.checks import one_sentence


def weights(folder):
    return load_file(folder / "model.safetensors")


def as_bin(folder, what):
    """Put a torch file in the place of the safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save(what, folder / "pytorch_model.bin")


def test_torch_files_of_plain_tensors(folder):
    state = weights(folder)
    as_bin(folder, state)
    model, _ = fastervlm.load(folder, device="cpu")
    expected = tiny.llava().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


class Bomb:
    """A pickle of it leaves a file behind when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def zipped(folder, bomb):
    as_bin(folder, weights(folder) | {"more": bomb})


def legacy(folder, bomb):
    (folder / "model.safetensors").unlink()
    torch.save(weights_of_nothing() | {"more": bomb}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def bare_pickle(folder, bomb):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"more": bomb}, protocol=2))


def in_a_shard(folder, bomb):
    state = weights(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state | {"more": bomb}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def weights_of_nothing():
    return {"lm_head.weight": torch.zeros(1)}


@pytest.mark.parametrize("hide", [zipped, legacy, bare_pickle, in_a_shard])
def test_a_pickle_that_would_run_code_is_not_opened(folder, tmp_path, hide):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a dud"
    mark.unlink()
    hide(folder, Bomb(mark))
    with pytest.raises(UserError, match=r"holds more than plain tensors and were not opened .* convert them to safetensors"):
        fastervlm.load(folder, device="cpu")
    assert not mark.exists()


def test_code_beside_the_checkpoint_is_not_run(folder, tmp_path):
    mark = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    fastervlm.load(folder, device="cpu")
    assert not mark.exists()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(UserError):
        fastervlm.load(folder, device="cpu")
    assert not mark.exists()


# --- damage: what is done to the folder, and what the sentence says


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": "llava", ')


def config_of_no_type(folder):
    (folder / "config.json").write_text("{}")


def config_of_a_list(folder):
    (folder / "config.json").write_text("[]")


def config_of_other_values(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


def unknown_type(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


def another_type(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def truncated_header(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])


def text_for_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 20)


def weights_of_another_shape(folder):
    state = weights(folder)
    state[next(name for name in state if name.endswith("lm_head.weight"))] = torch.zeros(5, 32)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def weights_lacking(folder):
    state = weights(folder)
    for name in [name for name in state if "projector" in name]:
        del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_something_else(folder):
    save_file({"x": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def missing_shard(folder):
    state = weights(folder)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated_bin(folder):
    as_bin(folder, weights(folder))
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def empty_bin(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def zip_without_tensors(folder):
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def no_processor(folder):
    for file in (*folder.glob("*processor*"), *folder.glob("tokenizer*"), *folder.glob("*.jinja")):
        file.unlink()


def no_image_processor(folder):
    for file in folder.glob("*processor*"):
        file.unlink()


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def broken_processor(folder):
    (folder / "processor_config.json").write_text("[1, ")


DAMAGE = {
    no_config: r"holds no config\.json; give the folder of a checkpoint",
    broken_config: r"The config\.json of .*tiny-llava cannot be read",
    config_of_no_type: r"The config\.json of .*tiny-llava cannot be read",
    config_of_a_list: r"The config\.json of .*tiny-llava cannot be read",
    config_of_other_values: r"The config\.json of .*tiny-llava cannot be read",
    unknown_type: r"The config\.json of .*tiny-llava cannot be read .*no-such-model",
    another_type: "is a 'llama' model; supported are llava, llava_next.",
    no_weights: "The weights of .*tiny-llava cannot be read",
    empty_weights: "The weights of .*tiny-llava cannot be read",
    truncated_weights: "The weights of .*tiny-llava cannot be read",
    truncated_header: "The weights of .*tiny-llava cannot be read",
    text_for_weights: "The weights of .*tiny-llava cannot be read",
    weights_of_another_shape: "The weights of .*tiny-llava cannot be read .their shapes are not those",
    weights_lacking: r"lacks 4 of the model's weights \(model\.multi_modal_projector\.linear_1\.bias, ",
    weights_of_something_else: r"lacks \d+ of the model's weights",
    missing_shard: "The weights of .*tiny-llava cannot be read",
    truncated_bin: "The weights of .*tiny-llava cannot be read",
    empty_bin: "The weights of .*tiny-llava cannot be read",
    zip_without_tensors: "The weights of .*tiny-llava cannot be read",
    no_processor: "The processor of .*tiny-llava cannot be read",
    no_image_processor: "The processor of .*tiny-llava cannot be read",
    no_tokenizer: "The processor of .*tiny-llava cannot be read",
    broken_tokenizer: "The processor of .*tiny-llava cannot be read",
    broken_processor: "The processor of .*tiny-llava cannot be read",
}


@pytest.mark.parametrize(("spoil", "sentence"), DAMAGE.items(), ids=[spoil.__name__ for spoil in DAMAGE])
def test_a_damaged_checkpoint(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(folder, device="cpu")
    one_sentence(caught.value)


def test_the_kinds_of_error(folder):
    another_type(folder)
    with pytest.raises(UserTypeError):
        fastervlm.load(folder, device="cpu")
