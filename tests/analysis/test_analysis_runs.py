"""Whole runs of the analyses: files, pages, scripts, mistakes, and runs that are stopped."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from encoders import UserError
from fastervlm.analysis import KINDS, attn_dispersion, attn_shift, reading
from fastervlm.analysis.page import Picture, Table, write_page
from fastervlm.commands import analyze as commands
from tests.support.analysis_runs import asked, script
from tests.support.checks import one_sentence

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Tags that are opened and closed in order, and all addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.seen = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_command_writes_all_files_and_says_where(model, bench, tmp_path, capsys):
    out = tmp_path / "out"
    data = {name: bench[name] for name in ("question_file", "image_folder")}
    commands.attn_shift(model=str(model), **data, out_dir=out, limit=2)
    assert f"To look at: {out}/attn_shift.html" in capsys.readouterr().out
    layers = {f"{kind}_attn/{what}/layer_{i}.png" for kind in KINDS for what in ("dist", "map") for i in (0, 1)}
    several = {f"{kind}_attn/layers.png" for kind in KINDS}
    shift = {"attn_shift.html", "attn_shift.json", "attn_shift.npz", "attn_shift.png", "overlap.png"}
    examples = {f"examples/strongest_1_{by}.jpg" for by in ("cls", "last")}
    expected = layers | several | shift | examples | {"questions_read.npz", "cls_attn/dist.png", "cls_attn/map.png"}
    assert files(out) == expected
    commands.attn_dispersion(model=str(model), **data, out_dir=out, limit=2)
    said = capsys.readouterr()
    assert "All questions are read already" in said.err
    assert f"To look at: {out}/attn_dispersion.html" in said.out
    expected |= {f"attn_dispersion.{kind}" for kind in ("html", "json", "npz", "png")}
    assert files(out) == expected | {"CDF.png", "CDF_layers.png", "cls_attn_dist.png", "last_attn_dist.png"}
    for path in [*out.rglob("*.png"), *out.rglob("*.jpg")]:
        with Image.open(path) as picture:
            assert min(picture.size) > 300, path
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5, path
    for name in ("shift", "dispersion"):
        text = (out / f"attn_{name}.html").read_text()
        page = Page(text)
        assert page.open == []
        assert all(address.startswith("data:image/") for address in page.addresses)
        assert "http" not in re.sub(r'src="[^"]*"', "", text)
        assert "url(" not in re.sub(r'src="[^"]*"', "", text)
        assert page.seen.count("img") > 5
        for part in ("prefers-color-scheme: dark", "width=device-width", "Strongest agreement", "tiny", "weights_sha256"):
            assert part in text


def test_page_escapes_what_it_is_given(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(picture)
    nasty = '<script>alert("x")</script>'
    about = {"model": nasty, "questions": 1, "layers": 2, "failures": [], "versions": {nasty: nasty}, "command": nasty}
    table = Table(nasty, [nasty], [[nasty]])
    write_page(
        tmp_path / "a.html", nasty, nasty, about, [table], [Picture(picture, nasty), Picture(picture, nasty, folded=True)], []
    )
    assert "script" not in Page((tmp_path / "a.html").read_text()).seen


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_cannot_be_read_are_named_and_tried_again(model, bench, tmp_path, capsys):
    whole = (bench["image_folder"] / "p0.png").read_bytes()
    data = {name: bench[name] for name in ("question_file", "image_folder")}
    commands.attn_shift(model=str(model), **data, out_dir=tmp_path / "sound", limit=3)
    (bench["image_folder"] / "p0.png").write_bytes(b"")
    with pytest.raises(typer.Exit) as ended:
        commands.attn_shift(model=str(model), **data, out_dir=tmp_path / "out", limit=3)
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert "Attention shift of 1 questions, 2 layers" in out
    assert err.count("p0.png is empty") == 2
    found = json.loads((tmp_path / "out" / "attn_shift.json").read_text())
    assert [failure["line"] for failure in found["failures"]] == [1, 2]
    with pytest.raises(UserError, match="no question with a picture that can be read"):
        commands.attn_shift(model=str(model), **data, out_dir=tmp_path / "none", limit=2)
    assert files(tmp_path / "none") == set()
    (bench["image_folder"] / "p0.png").write_bytes(whole)
    commands.attn_shift(model=str(model), **data, out_dir=tmp_path / "out", limit=3)
    ours, sound = (np.load(tmp_path / name / "attn_shift.npz") for name in ("out", "sound"))
    for name in sound.files:
        np.testing.assert_allclose(ours[name], sound[name], rtol=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_other_settings_are_refused_and_two_runs_at_once(subject, settings, tmp_path):
    out = tmp_path / "out"
    attn_shift(subject, asked(settings, limit=2), out)
    before = (out / reading.FILE).read_bytes()
    for changes in ({"limit": 3}, {"conv_mode": "vicuna_v1"}, {"image_aspect_ratio": "square"}):
        with pytest.raises(UserError, match="belongs to another run") as raised:
            attn_dispersion(subject, asked(settings, **({"limit": 2} | changes)), out)
        assert "\n" not in str(raised.value)
    assert (out / reading.FILE).read_bytes() == before
    with reading._alone(out), pytest.raises(UserError, match="Another run is writing") as raised:
        attn_dispersion(subject, asked(settings, limit=2), out)
    one_sentence(raised.value)
    attn_dispersion(subject, asked(settings, limit=2), out)


def test_stopped_run_says_how_to_go_on(model, bench, tmp_path, monkeypatch, capsys):
    data = {name: bench[name] for name in ("question_file", "image_folder")}
    monkeypatch.setattr(reading, "receive", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(typer.Exit) as ended:
        commands.attn_shift(model=str(model), **data, out_dir=tmp_path / "out", limit=2)
    assert ended.value.exit_code == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
    assert files(tmp_path / "out") == set()


def test_killed_at_every_step_each_question_is_counted_once(model, bench, tmp_path):
    """`kill_reading` kills readings with SIGKILL at each rename and starts them again."""
    data = bench["question_file"].parent
    command = [sys.executable, "-m", "tests.support.kill_reading", str(model), str(data), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) >= 9
    for outcome in outcomes:
        assert outcome["same"], outcome
        assert 2 <= outcome["read"] <= 4, outcome  # what was on disk is not read again
        assert set(outcome["left"]) <= {reading.FILE, f"{reading.FILE}.new"}, outcome


def test_script_runs_on_conversations(model, bench, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    bench["image_folder"].rename(data / "images")
    turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "No."}]
    records = [{"id": str(i), "image": f"p{i}.png", "conversations": turns} for i in range(3)]
    (data / "llava_v1_5_mix1k.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = script(tmp_path, "dispersion", CKPT=model, DATA=data, OUT=out, LIMIT=1)
    assert done.returncode == 0, done.stderr
    assert f"{out}/attn_dispersion.html" in done.stdout
    found = json.loads((out / "attn_dispersion.json").read_text())
    assert (found["task"], found["questions"], found["limit"]) == ("conversations", 1, 1)
    assert found["prompt_template"].startswith("A chat between a curious user and")


def test_scripts_ask_for_the_embedded_data_or_what_they_are_given(tmp_path):
    """The Python they are given says what it is asked for, and runs nothing."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$1" == -c ]] || echo "$@"\n')
    python.chmod(0o755)
    models = ROOT / "playground" / "models"
    embedded = f"--anyres paper --model {models}/tiny-llava --limit 100"
    for name in ("shift", "dispersion"):
        done = script(tmp_path, name, PYTHON=python)
        assert done.stdout.splitlines()[-1] == f"-m fastervlm.cli analyze attn-{name} {embedded}"
    given = {"CKPT": models / "tiny-llava-next", "ANYRES": "native", "LIMIT": 7, "OUT": "there"}
    done = script(tmp_path, "shift", PYTHON=python, **given)
    expected = f"--anyres native --out-dir there --model {models}/tiny-llava-next --limit 7"
    assert done.stdout.splitlines()[-1] == f"-m fastervlm.cli analyze attn-shift {expected}"
    (tmp_path / "llava_v1_5_mix1k.jsonl").touch()
    done = script(tmp_path, "shift", PYTHON=python, DATA=tmp_path, IMAGES=tmp_path, CKPT="some/name")
    data = f"--question-file {tmp_path}/llava_v1_5_mix1k.jsonl --image-folder {tmp_path} --limit 1000 --conv-mode vicuna_v1"
    assert done.stdout.strip() == f"-m fastervlm.cli analyze attn-shift --anyres paper --model some/name {data}"


def test_scripts_say_what_is_wrong(tmp_path):
    mistakes: list[Any] = [
        (["58"], {}, 2, "no arguments"),
        ([], {"CKPT": tmp_path / "no"}, 2, "is no folder"),
        ([], {"ANYRES": "wide"}, 2, "choose paper or native"),
        ([], {"DATA": tmp_path}, 1, "llava_v1_5_mix1k.jsonl"),
    ]
    for arguments, environment, code, message in mistakes:
        done = script(tmp_path, "shift", *arguments, **environment)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
