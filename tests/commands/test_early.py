"""What can be told before a model is loaded is told before, and nothing waits for a network that is not there."""

import json
import sys
import time

import pytest

from encoders import UserError
from fastervlm import cli
from fastervlm.checkpoints import hub
from fastervlm.checkpoints.config import read_config
from fastervlm.eval.subject import Subject
from tests.support.tiny import save_llava, write_benchmark


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in a process that cannot load a model; gives exit code and stderr."""

    def refused(*_):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(Subject, "loaded", property(refused))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastervlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def files(tmp_path):
    """Options of a benchmark."""
    bench = write_benchmark(tmp_path / "bench")
    return [text for name, path in bench.items() for text in (f"--{name.replace('_', '-')}", path)]


EARLY = [
    (["bench", "--model", "m", "--repeats", "0"], "--repeats is 0"),
    (["bench", "--model", "m", "--new-tokens", "0"], "--new-tokens is 0"),
    (["bench", "--model", "m", "--samples", "-1"], "--samples is -1"),
    (["eval", "textvqa", "--model", "m", "--answers-file", "a.jsonl", "--limit", "0"], "--limit is 0"),
    (["compare", "--model", "m", "--seeds", "0"], "--seeds is 0"),
]


def test_a_method_is_refused_before_weights_are_made(call, monkeypatch):
    monkeypatch.setattr("fastervlm.bench.workload.Workload.of_shape", None)
    code, err = call("bench", "--shape", "llava-1.5-7b", "--methods", "CLS")
    assert (code, "There is no method 'CLS'" in err) == (2, True), err


@pytest.mark.parametrize(("arguments", "sentence"), EARLY)
def test_numbers_are_refused_first(call, files, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, err = call(*arguments, *files)
    assert (code, sentence in err) == (2, True), err


@pytest.mark.parametrize("port", [99999, -1, 65536])
def test_a_port_that_does_not_exist_is_refused_first(call, port):
    code, err = call("demo", "--port", port)
    assert (code, "must be at least 0 and at most 65535" in " ".join(err.replace("│", " ").split())) == (2, True), err


@pytest.mark.parametrize("command", ["attn-efficiency", "attn-shift", "attn-dispersion"])
def test_limit_of_an_analysis_is_refused_first(call, command):
    code, err = call("analyze", command, "--limit", "-1")
    assert (code, "must be at least 1" in err) == (2, True), err


def test_answers_of_nobody_are_refused_first(call, files, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    code, err = call("eval", "textvqa", "--model", "m", "--answers-file", tmp_path / "a.jsonl", *files)
    assert (code, "no protocol beside it says whose it is" in err) == (2, True), err


def test_answers_of_nobody_in_any_cell_of_a_comparison_are_refused_first(call, files, tmp_path):
    last = tmp_path / "out" / "random-seed1" / "n_2.jsonl"
    last.parent.mkdir(parents=True)
    last.write_text("{}\n")
    model = save_llava(tmp_path / "model")
    choice = ["--visual-token-num", "5,2", "--methods", "grid,random", "--seeds", "2", "--out-dir", last.parent.parent]
    code, err = call("compare", "--model", model, *choice, *files)
    assert (code, "no protocol beside it says whose it is" in err) == (2, True), err
    assert "random-seed1" in err


def test_reproduce_does_not_advise_to_remove_a_question_file(call, tmp_path):
    for name, content in (("good.jsonl", "{}\n"), ("a.protocol.json", "[")):
        (tmp_path / name).write_text(content)
        code, err = call("reproduce", tmp_path / name)
        assert (code, "remove" in err, "protocol of a" in err or "a protocol of" in err) == (2, False, True), err


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://silent.invalid", "http://no-such-host.invalid"])
def test_a_hub_out_of_reach_is_told_in_seconds(monkeypatch, tmp_path, address):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    if "silent" in address:
        monkeypatch.setattr(hub, "_knock", lambda *_: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(UserError, match=f"nothing answers at {address}; give a folder, or connect this machine"):
        read_config("someone/some-model")
    assert time.monotonic() - start < 30


def test_a_folder_needs_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_answers", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert read_config(str(tmp_path)) == {"model_type": "llava"}
