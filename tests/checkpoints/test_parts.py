"""Folders that hold a part of a model: an adapter or a projector, which a sentence names with the way to merge it."""

import json
import sys

import pytest

import fastervlm
from fastervlm import UserError, cli
from tests.support import original
from tests.support.checks import one_sentence

LORA = {"peft_type": "LORA", "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}
BY_SCRIPT = (
    "scripts/merge_lora_weights.py --model-path {folder} --model-base lmsys/vicuna-7b-v1.5 --save-model-path OUT, and give OUT."
)
OF_NO_NAME = BY_SCRIPT.replace("lmsys/vicuna-7b-v1.5", "BASE")
BY_PEFT = "with PEFT, PeftModel.from_pretrained(model, '{folder}').merge_and_unload().save_pretrained(OUT)"


def put(folder, name, content: object = b"x"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def adapter_alone(folder):
    """As PEFT saves it."""
    put(folder, "adapter_config.json", LORA)
    put(folder, "adapter_model.safetensors")


def adapter_of_authors(folder):
    """As LLaVA's training saves it: llava-v1.5-7b-lora."""
    put(folder, "config.json", {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    put(folder, "adapter_config.json", LORA)
    put(folder, "adapter_model.bin")
    put(folder, "non_lora_trainables.bin")


def adapter_with_config(folder):
    put(folder, "config.json", {"model_type": "llava", "text_config": {}})
    adapter_alone(folder)


def projector(folder):
    """As LLaVA's pretraining saves it."""
    put(folder, "config.json", {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    put(folder, "mm_projector.bin")


def projector_without_config(folder):
    put(folder, "mm_projector.bin")


PARTS = {
    adapter_alone: ("holds an adapter (LoRA) and no model", BY_PEFT),
    adapter_with_config: ("holds an adapter (LoRA) and no model", BY_PEFT),
    adapter_of_authors: ("holds an adapter (LoRA) and no model", BY_SCRIPT),
    projector: ("holds a projector alone (mm_projector.bin) and no model", OF_NO_NAME),
    projector_without_config: (
        "holds a projector alone (mm_projector.bin) and no model",
        BY_SCRIPT.replace("lmsys/vicuna-7b-v1.5", "BASE"),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_named_with_the_way_to_merge_it(tmp_path, part):
    part(tmp_path)
    with pytest.raises(UserError) as error:
        fastervlm.load(tmp_path)
    what, how = PARTS[part]
    assert str(error.value).startswith(f"{tmp_path} {what}; merge it into its base model")
    assert how.format(folder=tmp_path) in str(error.value)
    one_sentence(error.value)


@pytest.mark.parametrize("base", [None, 7, "", {}])
def test_a_base_model_that_is_not_named(tmp_path, base):
    put(tmp_path, "adapter_config.json", {"base_model_name_or_path": base})
    with pytest.raises(UserError, match="merge it into its base model first: with PEFT"):
        fastervlm.load(tmp_path)
    put(tmp_path, "adapter_config.json", b"[1")
    with pytest.raises(UserError, match="merge it into its base model first: with PEFT"):
        fastervlm.load(tmp_path)


def test_an_adapter_beside_weights_needs_peft(folder, monkeypatch):
    """Without PEFT transformers would load the model and leave the adapter out, without a word."""
    adapter_alone(folder)
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: False)
    with pytest.raises(UserError, match=r"holds an adapter, for which PEFT is needed: pip install peft; or merge it"):
        fastervlm.load(folder, device="cpu")


def test_an_adapter_beside_weights_of_the_authors_is_refused(scratch_checkpoint):
    adapter_alone(scratch_checkpoint)
    with pytest.raises(UserError, match="holds an adapter, which is not applied in its authors' layout; merge it"):
        fastervlm.load(scratch_checkpoint, device="cpu")


@pytest.fixture
def scratch_checkpoint(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return original.write(original.stock(), tmp_path / "tiny", scratch, inside=True, count=1)


@pytest.mark.parametrize("command", ["convert", "eval"])
def test_commands_say_it_too(tmp_path, command, monkeypatch, capsys):
    part = tmp_path / "llava-v1.5-7b-lora"
    part.mkdir()
    adapter_of_authors(part)
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "What?"}\n')
    out = str(tmp_path / "out")
    asked = ["--question-file", f"{tmp_path}/q.jsonl", "--image-folder", str(tmp_path), "--answers-file", f"{out}.jsonl"]
    arguments = {"convert": [str(part), out], "eval": ["vizwiz", "--model", str(part), *asked]}[command]
    monkeypatch.setattr(sys, "argv", ["fastervlm", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "merge it into its base model lmsys/vicuna-7b-v1.5 first" in capsys.readouterr().err
