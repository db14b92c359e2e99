"""lmms-eval runs local tasks over the embedded model and gives the answers and the score of `fastervlm eval`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastervlm.embedded import ANNOTATIONS, IMAGES, MODEL, QUESTIONS
from fastervlm.eval import TASKS
from fastervlm.eval.medium import Pictures
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from playground import lmms_task, minibench

ROOT = Path(__file__).parents[2]
MULTIPLE = """task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function utils.shown
doc_to_text: !function utils.question
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
"""
# By name: further model arguments, and those of simple_evaluate.
RUNS = {
    "chat": ("keep=58", {"batch_size": 1}),
    "four": ("keep=58", {"batch_size": 4}),
    "simple": ("keep=58", {"batch_size": 5, "force_simple": True}),
    "all": ("keep=none", {"batch_size": 12}),
    "random": ("keep=0.05,method=random,seed=3", {"batch_size": 12}),
    "cut": ("keep=58", {"batch_size": 12, "gen_kwargs": "until=e"}),
    "choices": ("keep=58", {"batch_size": 4, "force_simple": True, "tasks": ["choices"]}),
    "no budget": ("keep=0", {}),
    "unknown": ("keeps=58", {}),
    "wrong": ("keep=58", {"model": "fastervlm_llava_next"}),
    "key": ("keep=58", {"gen_kwargs": "max_tokens=5"}),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A mini benchmark of twelve questions."""
    folder = tmp_path_factory.mktemp("bench")
    minibench.write(folder, pictures=4)
    return folder


@pytest.fixture(scope="module")
def rows(bench):
    return list(lmms_task.pictures(bench / QUESTIONS, bench / IMAGES, bench / ANNOTATIONS))


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    """What came of each run."""
    folder = tmp_path_factory.mktemp("lmms")
    lmms_task.write(folder, "fastervlm_mini", rows)
    words = sorted({row["answers"][0] for row in rows})
    choices = [row | {"choices": words, "gold": words.index(row["answers"][0])} for row in rows]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    (folder / "choices.yaml").write_text(MULTIPLE.format(rows=json.dumps(str(folder / "choices.jsonl"))))
    common = {"include": str(folder), "model": "fastervlm_llava_hf", "tasks": ["fastervlm_mini"]}
    spec = [common | {"model_args": f"pretrained={MODEL},{args}"} | more for args, more in RUNS.values()]
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tests.support.lmms_process", str(folder / "spec.json"), str(folder / "out.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS, json.loads((folder / "out.json").read_text()), strict=True))


def environment(folder):
    """Without a network, and with all caches in the folder."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHON": sys.executable, "TQDM_DISABLE": "1"}


def answers(run):
    return [answer for (answer,) in run["answers"]["fastervlm_mini"]]


@pytest.mark.parametrize(("name", "keep", "method"), [("chat", 58, "cls"), ("all", None, "cls"), ("random", 0.05, "random")])
def test_answers_and_score_are_those_of_fastervlm_eval(bench, found, tmp_path, name, keep, method):
    from fastervlm.eval.settings import seeded

    settings = Settings(
        TASKS["textvqa"],
        bench / QUESTIONS,
        bench / IMAGES,
        tmp_path / "answers.jsonl",
        bench / ANNOTATIONS,
        keep=keep,
        method=seeded(method, 3),
        medium=Pictures(),
    )
    _, score = evaluate(Subject(str(MODEL)), settings)
    assert score is not None
    own = [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers(found[name]) == own
    assert found[name]["results"]["fastervlm_mini"]["accuracy,none"] == pytest.approx(score.value / 100)


def test_neither_the_batch_nor_the_class_matters(found):
    assert answers(found["chat"]) == answers(found["four"]) == answers(found["simple"])
    assert len(set(answers(found["chat"]))) > 5
    assert answers(found["random"]) != answers(found["all"])


def test_stop_strings_of_the_command_line_are_heeded(found):
    whole, cut = answers(found["chat"]), answers(found["cut"])
    assert cut == [text.split("e")[0] for text in whole] != whole


def test_the_likeliest_choice_counts(found, rows):
    words = sorted({row["answers"][0] for row in rows})
    told = found["choices"]["answers"]["choices"]
    chosen = [words[min(range(len(words)), key=lambda i: row[i][0])] for row in told]
    right = [row["answers"][0] == word for row, word in zip(rows, chosen, strict=True)]
    assert found["choices"]["results"]["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))
    for row, word, written in zip(told, chosen, answers(found["chat"]), strict=True):  # an answer is one token of the model
        assert word == written or written not in words
        assert [best for _, best in row] == [word == written for word in words]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no budget", "keep=0 would leave no visual token"),
        ("unknown", "There is no model argument keeps; known are pretrained, keep"),
        ("wrong", "is a llava model; use --model fastervlm_llava_hf"),
        ("key", "The task asks for max_tokens"),
    ],
)
def test_what_is_wrong_is_said(found, name, said):
    assert found[name]["error"].startswith("User")
    assert said in found[name]["error"]


def script(folder, *arguments, **settings):
    env = {key: value for key, value in environment(folder).items() if key not in ("CKPT", "MODEL", "KEEP", "METHOD", "CONV")}
    command = ["bash", str(ROOT / "scripts" / "lmms_eval.sh"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=env | {"OUT": str(folder / "out")} | settings, capture_output=True, text=True, check=False
    )


def test_the_script_asks_the_embedded_model(tmp_path, rows):
    lmms_task.write(tmp_path, "fastervlm_mini", rows)
    done = script(tmp_path, LIMIT="3", TASKDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "fastervlm_mini" in done.stdout
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["n-samples"]["fastervlm_mini"]["effective"] == 3


@pytest.mark.slow
def test_the_script_fails_where_lmms_eval_does(tmp_path, rows):
    lmms_task.write(tmp_path, "fastervlm_mini", rows)
    done = script(tmp_path, KEEP="0", TASKDIR=str(tmp_path))
    assert done.returncode == 1
    assert "keep=0 would leave no visual token" in done.stderr


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({}, ["a", "b"], "usage:"),
        ({"MODEL": "llava"}, [], "MODEL=llava is not known; choose fastervlm_llava_hf"),
        ({"CKPT": "/nowhere"}, [], "CKPT=/nowhere is no folder"),
        ({"PYTHON": "/bin/false"}, [], "has not what fastervlm needs"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path, settings, arguments, said):
    done = script(tmp_path, *arguments, **settings)
    assert done.returncode == 2
    assert said in done.stderr
