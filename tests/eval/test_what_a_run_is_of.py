"""Files that the answers depend on: a change of any of them makes another run, and no answer is taken for one of it."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.eval.answers import Journal, journal_file, protocol_file
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject


@pytest.fixture
def copy(model, tmp_path):
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "copy" / "tiny"))


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Folders of two LoRA adapters of the tiny model, by what their second matrix is filled with."""
    folder = tmp_path_factory.mktemp("adapters")
    for value in (0.3, -0.3):
        plain, _ = fastervlm.load(model, device="cpu")
        with warnings.catch_warnings(action="ignore"):  # PEFT asks the model in ways that transformers gives up
            adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)"))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.fill_(value)
        adapted.save_pretrained(str(folder / str(value)))
    return folder


def adapt(folder, adapter):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)


def texts(settings):
    return [json.loads(line)["text"] for line in settings.answers_file.read_text().splitlines()]


@pytest.mark.parametrize("first", [None, "0.3"])
def test_answers_of_another_adapter_are_never_taken(settings, copy, adapters, tmp_path, first):
    """They are refused, and made elsewhere they are others."""
    if first is not None:
        adapt(copy, adapters / first)
    evaluate(Subject(str(copy)), settings())
    adapt(copy, adapters / "-0.3")
    with pytest.raises(UserError, match="weights_sha256 is"):
        evaluate(Subject(str(copy)), settings())
    elsewhere = settings(answers_file=tmp_path / "elsewhere.jsonl")
    evaluate(Subject(str(copy)), elsewhere)
    assert texts(elsewhere) != texts(settings())


def hashes(folder):
    subject = Subject(str(folder))
    return subject.weights_sha256, subject.processor_sha256


def renamed(folder):
    """Weights under a name that config.json gives."""
    shutil.copy(folder / "model.safetensors", folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))


def more(name, text="{}"):
    def write(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("a b")


# What is there, what is changed then, and whether weights and small files are then other ones.
CHANGES = {
    "chat template": (None, more("chat_template.jinja", "{{ 1 }}"), (False, True)),
    "further chat template": (None, more("additional_chat_templates/tool.jinja", "x"), (False, True)),
    "tokenizer": (None, more("special_tokens_map.json"), (False, True)),
    "vocabulary without tokenizer.json": (without_tokenizer, more("merges.txt", "b a"), (False, True)),
    "vocabulary that is not read": (None, more("merges.txt", "b a"), (False, False)),
    "generation": (None, more("generation_config.json"), (False, True)),
    "weights under another name": (renamed, lambda f: (f / "mine.safetensors").write_bytes(b"other"), (True, False)),
    "weights that are not read": (renamed, lambda f: (f / "model.safetensors").write_bytes(b"other"), (False, False)),
    "adapter without config": (None, more("adapter_model.safetensors"), (False, False)),
    "notes": (None, more("README.md", "x"), (False, False)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_load_reads_is_a_models_identity(copy, name):
    first, change, differs = CHANGES[name]
    if first is not None:
        first(copy)
    before = hashes(copy)
    change(copy)
    assert tuple(one != other for one, other in zip(before, hashes(copy), strict=True)) == differs


def test_weights_under_the_name_of_the_config_are_those_that_are_read(copy):
    renamed(copy)
    (copy / "model.safetensors").write_bytes(b"not read")
    fastervlm.load(copy, device="cpu")


def repaint(bench, name, size=None):
    """Another picture of the same name."""
    path = bench["image_folder"] / name
    with Image.open(path) as picture:
        other = Image.effect_noise(size or picture.size, 60).convert("RGB")
    other.save(path)


def stop(subject, chosen, monkeypatch):
    """A run that ends after its first batch."""
    add = Journal.add

    def once(self, entries):
        add(self, entries)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", once)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, chosen)


@pytest.mark.parametrize("finished", [True, False])
def test_answers_about_other_pictures_are_never_taken(subject, settings, bench, monkeypatch, finished):
    if finished:
        evaluate(subject, settings())
    else:
        stop(subject, settings(), monkeypatch)
    repaint(bench, "p0.png")
    with pytest.raises(UserError, match="The pictures or clips are not those that the answers in"):
        evaluate(subject, settings())


def test_pictures_beyond_the_sample_are_told_by_their_size(subject, settings, bench, monkeypatch):
    monkeypatch.setattr("fastervlm.eval.media.SAMPLE", 1)
    evaluate(subject, settings())
    repaint(bench, "p2.png", (99, 99))
    with pytest.raises(UserError, match="are not those"):
        evaluate(subject, settings())


def test_pictures_that_are_gone_do_not_stop_a_finished_run(subject, settings, bench):
    """Whoever cleans up after a run still scores it."""
    _, first = evaluate(subject, settings())
    shutil.rmtree(bench["image_folder"])
    bench["image_folder"].mkdir()
    _, again = evaluate(subject, settings())
    assert first is not None
    assert again is not None
    assert again.value == first.value


def test_a_missing_picture_is_put_there_and_the_run_goes_on(subject, settings, bench):
    path = bench["image_folder"] / "p1.png"
    picture = path.read_bytes()
    path.unlink()
    first, _ = evaluate(subject, settings())
    path.write_bytes(picture)
    second, _ = evaluate(subject, settings())
    assert (first["failed"], second["failed"]) == (2, 0)
    evaluate(subject, settings())


def test_files_of_older_versions_know_nothing_of_pictures(subject, settings, bench, monkeypatch):
    """A journal and a protocol that do not say what the pictures held are taken as they were."""
    stop(subject, settings(), monkeypatch)
    path = journal_file(settings().answers_file)
    head, *lines = path.read_text().splitlines()
    old = [{key: value for key, value in json.loads(line).items() if key not in ("turned", "print")} for line in lines]
    path.write_text("\n".join([head, *map(json.dumps, old)]) + "\n")
    repaint(bench, "p0.png")
    protocol, _ = evaluate(subject, settings())
    assert (protocol["answered"], protocol["media_sha256"]) == (10, None)
    repaint(bench, "p1.png")
    evaluate(subject, settings())
    found = reproduce(protocol_file(settings().answers_file))
    assert found.changed == []


def test_a_repetition_says_that_the_pictures_are_others(subject, settings, bench):
    evaluate(subject, settings())
    repaint(bench, "p0.png")
    found = reproduce(protocol_file(settings().answers_file))
    assert found.changed == ["media_sha256"]
    assert "The pictures or clips are not those of the first run." in found.lines()
