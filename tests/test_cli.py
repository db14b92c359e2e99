import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from fastervlm import cli
from tests.support import tiny
from tests.support.tiny import save_llava, write_benchmark

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def bench(tmp_path):
    return write_benchmark(tmp_path / "bench")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in a folder of its own; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastervlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def options(model_folder, bench, **changes):
    """The options of `eval` as a list; None leaves one out."""
    paths = {key.replace("_", "-"): path for key, path in bench.items()}
    out = bench["question_file"].parent.parent / "out" / "a.jsonl"
    chosen = {"model": model_folder, "answers-file": out, "max-new-tokens": 2} | paths
    chosen |= {key.replace("_", "-"): value for key, value in changes.items()}
    return [part for key, value in chosen.items() if value is not None for part in (f"--{key}", value)]


def test_eval_answers_scores_and_draws(run, model, bench, tmp_path):
    arguments = options(model, bench, visual_token_num=5, overlay=tmp_path / "pictures" / "kept.png")
    code, out, _ = run("eval", "textvqa", *arguments)
    assert code == 0
    assert out.splitlines()[:2] == ["Samples: 10", "Accuracy: 0.00%"]
    assert "Visual tokens: 5 of 16" in out
    assert "samples/s" in out
    with Image.open(tmp_path / "pictures" / "kept.png") as drawn:
        assert min(drawn.size) > 100
    protocol = json.loads((tmp_path / "out" / "a.protocol.json").read_text())
    assert protocol["command"].startswith("fastervlm eval textvqa --model")

    code, out, err = run("eval", "textvqa", *arguments)
    assert code == 0
    assert "only scored again" in err

    files = ["--annotation-file", bench["annotation_file"], "--result-file", tmp_path / "out" / "a.jsonl"]
    code, out, _ = run("score", "textvqa", *files, "--json", tmp_path / "new" / "score.json")
    assert code == 0
    assert out.splitlines()[:2] == ["Samples: 10", "Accuracy: 0.00%"]
    assert json.loads((tmp_path / "new" / "score.json").read_text()) == protocol["score"]


def test_eval_without_a_budget_is_unpruned(run, model, bench, tmp_path):
    code, out, _ = run("eval", "textvqa", *options(model, bench, limit=2))
    assert code == 0
    assert "Visual tokens: 16 of 16" in out
    assert json.loads((tmp_path / "out" / "a.protocol.json").read_text())["method"] == "none"


def test_seed_reaches_the_random_method(run, model, bench, tmp_path):
    assert run("eval", "textvqa", *options(model, bench, visual_token_num="0.25", method="random", seed=3))[0] == 0
    protocol = json.loads((tmp_path / "out" / "a.protocol.json").read_text())
    assert (protocol["method"], protocol["visual_token_num"], protocol["budget"]) == ("RandomTokens(seed=3)", 4, 0.25)


def test_failed_picture_is_named_and_the_exit_code_says_so(run, model, bench):
    (bench["image_folder"] / "p0.png").write_bytes(b"no picture")
    drawn = bench["image_folder"].parent / "kept.png"
    code, out, err = run("eval", "textvqa", *options(model, bench, visual_token_num=5, overlay=drawn))
    assert code == 1
    assert drawn.exists()
    assert "Samples: 8" in out
    assert "question p0: " in err
    assert "p0.png cannot be read as a picture" in err
    assert "2 questions failed" in err
    for picture in bench["image_folder"].iterdir():
        picture.write_bytes(b"")
    code, out, err = run(
        "eval", "textvqa", *options(model, bench, visual_token_num=6, answers_file="none.jsonl", overlay=drawn)
    )
    assert code == 1
    assert "No score." in out
    assert "10 questions failed" in err


def test_compare_prints_the_table(run, model, bench, tmp_path):
    shared = options(model, bench, answers_file=None, out_dir=tmp_path / "cmp", visual_token_num="16,4", methods="cls,grid")
    code, out, _ = run("compare", *shared, "--blind")
    assert code == 0
    for word in ("tokens", "cls", "grid", "│ 16 ", "│ 4 ", "blind"):
        assert word in out
    assert {"compare.md", "compare.json", "compare.png"} <= {path.name for path in (tmp_path / "cmp").iterdir()}


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
MISTAKES = [
    ({"visual_token_num": "0"}, "keep=0 would leave no visual token"),
    ({"visual_token_num": "-3"}, "keep=-3"),
    ({"visual_token_num": "nan"}, "keep=nan"),
    ({"visual_token_num": "inf"}, "keep=inf"),
    ({"visual_token_num": "1.5"}, "keep=1.5"),
    ({"visual_token_num": "many"}, "--visual-token-num is 'many'"),
    ({"method": "best"}, "no method named 'best'"),
    ({"batch_size": 0}, "--batch-size is 0"),
    ({"dtype": "int7"}, "int7"),
    ({"device": "toaster"}, "toaster"),
    pytest.param({"device": "cuda"}, "CUDA", marks=no_cuda),
    ({"conv_mode": "llama"}, "no conversation mode 'llama'"),
    ({"image_aspect_ratio": "round"}, "no image aspect ratio 'round'"),
    ({"question_file": "none.jsonl"}, "none.jsonl cannot be read: No such file"),
    ({"image_folder": "none"}, "image folder none does not exist"),
    ({"annotation_file": "none.json"}, "none.json cannot be read: No such file"),
    ({"answers_file": "/proc/none/a.jsonl"}, "output folder /proc/none cannot be made"),
    ({"answers_file": "a.txt"}, "must end in .jsonl"),
    ({"model": "/none/model"}, "/none/model"),
    ({"overlay": "kept.png"}, "--visual-token-num as well"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistake_is_one_sentence(run, model, bench, changes, message):
    code, out, err = run("eval", "textvqa", *options(model, bench, **changes))
    assert code == 2
    said = [line for line in err.splitlines() if line.startswith("fastervlm: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "Traceback" not in err
    assert out == ""


def test_mistakes_in_words(run, model, bench):
    code, _, err = run("eval", "nothing", *options(model, bench))
    names = "gqa, vqav2, vizwiz, sqa, textvqa, pope, mme, mmbench, mmbench_cn, mmvet, aokvqa, ocrvqa"
    assert (code, err) == (2, f"fastervlm: There is no benchmark 'nothing'; choose one of: {names}.\n")
    code, _, err = run("compare", *options(model, bench, answers_file=None, out_dir="x", visual_token_num="58,,3"))
    assert (code, err) == (2, "fastervlm: --visual-token-num is ''; give a count such as 58 or a fraction such as 0.1.\n")
    code, _, err = run(
        "score", "textvqa", "--annotation-file", bench["annotation_file"], "--result-file", bench["annotation_file"]
    )
    assert code == 2
    assert "line 1: an answer needs 'question_id', 'prompt' and 'text'" in err


def test_annotation_is_checked_before_the_model_loads(run, bench):
    data = json.loads(bench["annotation_file"].read_text())
    data["data"][3]["answers"] = ["x"] * 9
    bench["annotation_file"].write_text(json.dumps(data))
    code, _, err = run("eval", "textvqa", *options("/none/model", bench))
    assert code == 2
    assert "Question 3 " in err
    assert "ten answers" in err


class Point:
    """An entry point of another package."""

    def __init__(self, name, command):
        self.name, self.load = name, lambda: command


def test_commands_of_other_packages_are_added(run, monkeypatch):
    def hello() -> None:
        print("hello from above")

    group = typer.Typer()
    group.command("one")(hello)
    group.command("two")(hello)
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
    monkeypatch.setattr(cli.app, "registered_groups", list(cli.app.registered_groups))
    points = [Point("hello", hello), Point("group", group)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points if group == "fastervlm.commands" else [])
    assert run("hello")[:2] == (0, "hello from above\n")
    assert run("group", "two")[:2] == (0, "hello from above\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_run_goes_on_where_it_stopped(run, model, tmp_path, number):
    bench = write_benchmark(tmp_path / "long", count=40)
    arguments = ["eval", "textvqa", *options(model, bench, batch_size=1, visual_token_num=4, annotation_file=None)]
    journal, answers = tmp_path / "out" / "a.jsonl.partial", tmp_path / "out" / "a.jsonl"
    command = [sys.executable, "-m", "tests.support.stop_at_write", int(number), 5, "fastervlm.cli", *arguments]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, env=settings)
    err = process.stderr
    assert not answers.exists()
    assert 0 < journal.read_bytes().count(b"\n") - 1 < 40, err
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "fastervlm: stopped; the same command goes on where this one stopped."
    else:
        assert process.returncode == -signal.SIGKILL

    assert run(*arguments[:-2], "--batch-size", 64, "--visual-token-num", 4)[0] == 0
    asked = [json.loads(line)["question_id"] for line in answers.read_text().splitlines()]
    assert asked == [f"p{i // 2}" for i in range(40)]
    assert not journal.exists()


def script(tmp_path, *arguments, version="v1_5", **environment):
    """Run scripts/<version>/eval/textvqa.sh from another working directory."""
    clean = {key: value for key, value in os.environ.items() if key not in ("CKPT", "METHOD", "ANYRES", "DATA", "BATCH")}
    command = ["bash", str(ROOT / "scripts" / version / "eval" / "textvqa.sh"), *arguments]
    settings = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean | {"PYTHON": sys.executable} | settings
    )


@pytest.mark.parametrize("version", ["v1_5", "v1_6"])
@pytest.mark.parametrize("arguments", [[], ["many"], ["0"], ["-5"], ["5.5"], ["5", "6"]])
def test_script_without_a_number_of_tokens_says_how_it_is_used(tmp_path, arguments, version):
    done = script(tmp_path, *arguments, version=version)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert len(done.stderr.splitlines()) == 1


def test_script_says_which_files_are_missing(tmp_path):
    done = script(tmp_path, "58", DATA=tmp_path)
    assert done.returncode == 2
    names = ("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json", "train_images")
    for part in (*names, f"fastervlm data textvqa --dir {tmp_path}"):
        assert part in done.stderr


def test_script_draws_nothing_into_a_folder_of_the_users(bench, tmp_path):
    data = bench["question_file"].parent
    bench["question_file"].unlink()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    done = script(tmp_path, "5", DATA=data)
    assert done.returncode == 2
    assert "are not complete" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_script_names_a_checkpoint_that_is_missing_and_a_python_without_torch(bench, tmp_path):
    data = bench["question_file"].parent
    done = script(tmp_path, "5", CKPT="/models/llava", DATA=data)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "CKPT=/models/llava is no folder" in done.stderr
    done = script(tmp_path, "5", PYTHON="/nowhere/python")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "make demo" in done.stderr


def test_script_evaluates_a_checkpoint_with_the_reference_template(model, bench, tmp_path):
    data = bench["question_file"].parent
    done = script(tmp_path, "5", CKPT=os.path.relpath(model, tmp_path), DATA=data, METHOD="grid", BATCH=10)
    assert done.returncode == 0, done.stderr
    out = data / "answers" / "tiny" / "grid"
    assert sorted(path.name for path in out.iterdir()) == ["n_5.jsonl", "n_5.png", "n_5.protocol.json"]
    protocol = json.loads((out / "n_5.protocol.json").read_text())
    assert protocol["prompt_template"].startswith("A chat between a curious user and")
    assert (protocol["batch_size"], protocol["method"]) == (10, "grid")
    assert f"Picture of the kept tokens: {out / 'n_5.png'}" in done.stdout


@pytest.mark.parametrize(("layout", "folder"), [({}, "cls"), ({"ANYRES": "native"}, "cls-native")])
def test_script_of_llava_next_lays_crops_out_as_the_paper_unless_told(bench, tmp_path, layout, folder):
    tiny.llava_next().save_pretrained(tmp_path / "tiny-next")
    tiny.next_processor().save_pretrained(tmp_path / "tiny-next")
    data = bench["question_file"].parent
    done = script(tmp_path, "5", version="v1_6", CKPT=tmp_path / "tiny-next", DATA=data, BATCH=10, **layout)
    assert done.returncode == 0, done.stderr
    out = data / "answers" / "tiny-next" / folder
    assert sorted(path.name for path in out.iterdir()) == ["n_5.jsonl", "n_5.png", "n_5.protocol.json"]
    protocol = json.loads((out / "n_5.protocol.json").read_text())
    assert protocol["anyres"]["anyres"] == layout.get("ANYRES", "paper")
    assert "at most 5 a crop" in done.stdout


def test_script_refuses_an_unknown_layout(bench, tmp_path):
    done = script(tmp_path, "5", version="v1_6", DATA=bench["question_file"].parent, ANYRES="both")
    assert (done.returncode, done.stderr) == (2, "ANYRES=both is not known; choose paper or native.\n")


@pytest.mark.parametrize(("version", "other"), [("v1_5", "v1_6"), ("v1_6", "v1_5")])
def test_script_names_the_script_of_the_other_family(bench, tmp_path, version, other):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_next" if version == "v1_5" else "llava"}))
    done = script(tmp_path, "5", version=version, CKPT=folder, DATA=bench["question_file"].parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"scripts/{other}/eval/textvqa.sh" in done.stderr
