"""`fastervlm ask`: the stock model's answers, pruned or not, to a question about one or several pictures."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm import METHODS, FastV, RandomTokens
from fastervlm.ask.asked import Asked, Pruner
from fastervlm.commands.ask import pictures_and_question
from fastervlm.eval.subject import Subject
from fastervlm.reporting.speed import RUNS, Speed
from tests.support.commands import run_command
from tests.support.tiny import PATCHES, save_llava

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("asked") / "tiny")


@pytest.fixture(scope="module")
def subject(folder):
    return Subject(str(folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures, the second of them noted as turned by its camera."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, exif in (("one.png", None), ("turned.jpg", 6)):
        picture = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
        notes = picture.getexif()
        if exif:
            notes[0x0112] = exif
        picture.save(place / name, exif=notes)
    return [place / "one.png", place / "turned.jpg"]


def by_hand(subject, pictures, keep=None, method=None):
    """The answer of the stock model to a prompt that is written out."""
    prompt = "USER: " + "<image>\n" * len(pictures) + f"{QUESTION} ASSISTANT:"
    inputs = subject.processor(images=pictures, text=[prompt], return_tensors="pt")

    def answer():
        output = subject.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return subject.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    if keep is None:
        return answer()
    with fastervlm.prune(subject.model, keep, method=method):
        return answer()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("keep", "method"), [(None, None), (5, None), (0.25, RandomTokens()), (6, FastV(layer=1))])
def test_the_answer_is_the_models_own(subject, files, count, keep, method):
    asked = Asked(subject, files[:count], QUESTION, max_new_tokens=8)
    pieces: list[str] = []
    pruner = None if keep is None else Pruner(keep, method)
    reply = asked.reply(pruner, pieces.append)
    assert reply.text == "".join(pieces).strip() == by_hand(subject, asked.pictures, keep, method)
    assert asked.visual_tokens == count * PATCHES
    each = {None: PATCHES, 5: 5, 0.25: PATCHES // 4}
    assert reply.visual_tokens == (6 if keep == 6 else count * each[keep])
    assert reply.first_token > 0
    assert reply.method == (None if keep is None else method or METHODS["cls"])
    assert "generate" not in subject.model.__dict__  # pruned no longer


def test_pictures_are_upright_and_padded(subject, files):
    plain, turned = Asked(subject, files, QUESTION).pictures
    assert plain.size == turned.size == (60, 60)
    grey = tuple(int(255 * mean) for mean in subject.processor.image_processor.image_mean)
    assert plain.getpixel((30, 2)) == turned.getpixel((2, 30)) == grey  # borders above, and at the side


def test_a_race_takes_turns(subject, files, monkeypatch):
    asked, pruner, ran = Asked(subject, files[:1], QUESTION), Pruner(4), []

    def run(how, longest):
        ran.append(how)
        clock = type("Clock", (), {"seconds": 0.1 if how else 0.2})
        return torch.zeros(longest), clock, None

    monkeypatch.setattr(asked, "_generate", run)
    speed, full, few = asked.race(pruner)
    assert ran == [None, pruner, pruner, None] * (RUNS // 2) + [None, pruner]
    assert (speed.ratio, full, few, speed.verdict) == (2, 0.2, 0.1, "faster")


RACES = [
    ([2.0] * 7, [1.0] * 7, "faster"),
    ([1.0] * 7, [1.0] * 7, "no faster"),
    ([1.04] * 7, [1.0] * 7, "no faster"),
    ([1.2, 1.2, 1.2, 1.2, 0.9, 0.9, 1.2], [1.0] * 7, "not clearly faster"),
    ([1.0] * 7, [2.0] * 7, "slower"),
]


@pytest.mark.parametrize(("before", "after", "verdict"), RACES)
def test_a_difference_is_claimed_where_the_runs_agree(before, after, verdict):
    assert Speed.of(before, after).verdict == verdict


def test_the_command_tells_both_answers(monkeypatch, capsys, folder, files, tmp_path):
    drawn = tmp_path / "new" / "kept.png"
    options = ["--model", folder, "--keep", "5", "--max-new-tokens", "4", "--compare", "--overlay", drawn]
    code, out, err = run_command(monkeypatch, capsys, "ask", *files, QUESTION, *options)
    assert code == 0
    assert re.search(rf"^Pruned: .*\n  10 of {2 * PATCHES} visual tokens \(cls\), [0-9]+ ms to the first token$", out, re.M)
    assert re.search(rf"^Unpruned: .*\n  {2 * PATCHES} visual tokens, all, [0-9]+ ms to the first token$", out, re.M)
    assert re.search(r"^Pruned is (faster|no faster|slower|not clearly faster) to the first token \(", out, re.M)
    assert f"Picture of what was kept: {drawn}" in out
    assert "tiny LLaVA" not in err
    with Image.open(drawn) as sheet:
        assert sheet.height == 2 * 672 + 14


def test_in_llm_methods_are_drawn(monkeypatch, capsys, folder, files, tmp_path):
    options = [
        "--model",
        folder,
        "--keep",
        "4",
        "--method",
        "simignore",
        "--max-new-tokens",
        "2",
        "--overlay",
        tmp_path / "a.png",
    ]
    code, out, _ = run_command(monkeypatch, capsys, "ask", files[0], QUESTION, *options)
    assert code == 0
    assert f"  4 of {PATCHES} visual tokens (simignore)" in out
    assert (tmp_path / "a.png").exists()


def test_words_are_pictures_and_a_question():
    assert pictures_and_question([]) == ([], "")
    files, question = pictures_and_question(["a.png", "b/c.jpg", "Why?"])
    assert ([str(file) for file in files], question) == (["a.png", "b/c.jpg"], "Why?")


MISTAKES = [
    (["what"], "Give one or several pictures and then the question"),
    (["a.png", " "], "Give one or several pictures and then the question"),
    (["none.png", "What?"], "none.png is missing"),
    ([".", "What?"], ". is no file"),
    (["{one}", "What?", "--keep", "0"], "keep=0"),
    (["{one}", "What?", "--keep", "many"], "--keep is 'many'"),
    (["{one}", "What?", "--method", "best"], "no method named 'best'"),
    (["{one}", "What?", "--overlay", "kept.jpg"], "--overlay kept.jpg must end in .png"),
    (["{one}", "{one}", "What?", "--method", "fastv", "--overlay", "k.png"], "--overlay draws one picture"),
    (["{one}", "What is <image>?"], "The question holds <image>"),
    (["{one}", "What?", "--conv-mode", "llama"], "llama"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(monkeypatch, capsys, folder, files, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    given = [word.format(one=files[0]) for word in words]
    code, out, err = run_command(monkeypatch, capsys, "ask", *given, "--model", folder)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_a_prompt_that_no_tokenizer_takes(subject, files):
    with pytest.raises(UserError, match="The question cannot be asked"):
        Asked(subject, files[:1], "half \ud83d a character")
