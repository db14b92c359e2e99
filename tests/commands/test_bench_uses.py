"""`bench` is parted into three uses; how it was called before is understood, or refused by the name of the right use."""

import pytest
import typer
from typer.testing import CliRunner

from encoders import UserError
from fastervlm.commands.bench import bench, with_use

OLD = [
    ([], ["task"]),
    (["--preset", "fastv", "--limit", "2"], ["task", "--preset", "fastv", "--limit", "2"]),
    (["--model", "m", "--methods", "none,cls"], ["model", "--model", "m", "--methods", "none,cls"]),
    (["--methods=cls", "--batch", "1"], ["model", "--methods=cls", "--batch", "1"]),
    (["--shape", "tiny", "--random-weights", "--batch", "1,8"], ["shape", "tiny", "--random-weights", "--batch", "1,8"]),
    (["--methods", "cls", "--shape=tiny"], ["shape", "tiny", "--methods", "cls"]),
    (["--out", "x.json", "--shape"], ["shape", "--out", "x.json"]),
]
FOREIGN = [
    (["--shape", "tiny", "--limit", "0"], "--limit belongs to bench task, not to bench shape"),
    (["--shape", "tiny", "--model", "m"], "--model belongs to bench task and bench model, not to bench shape"),
    (["--shape", "tiny", "--load-in-4bit"], "--load-in-4bit belongs to bench task and bench model, not to bench shape"),
    (["--methods", "cls", "--random-weights"], "--random-weights belongs to bench shape, not to bench model"),
    (["--batch", "1"], "--batch belongs to bench model and bench shape, not to bench task"),
    (["--batch=1"], "--batch belongs to bench model and bench shape, not to bench task"),
    (["model", "--question-file", "q"], "--question-file belongs to bench task, not to bench model"),
    (["shape", "tiny", "--out-dir", "o"], "--out-dir belongs to bench task, not to bench shape"),
    (["model", "--llm-layers", "2"], "--llm-layers belongs to bench shape, not to bench model"),
    (["task", "--text-tokens", "3"], "--text-tokens belongs to bench model and bench shape, not to bench task"),
]


@pytest.fixture
def call():
    app = typer.Typer()
    app.add_typer(bench, name="bench")
    app.command()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(("before", "now"), OLD)
def test_the_use_is_told_by_the_options(before, now):
    assert with_use(before) == now


@pytest.mark.parametrize(("arguments", "sentence"), FOREIGN)
def test_an_option_of_another_use_is_refused_by_its_name(call, arguments, sentence):
    error = call(*arguments).exception
    assert isinstance(error, UserError)
    assert str(error) == f"{sentence}; leave it out."


@pytest.mark.parametrize("arguments", [["shape", "nothing"], ["--shape", "nothing", "--random-weights"], ["--shape=nothing"]])
def test_old_and_new_forms_reach_the_same_function(call, arguments):
    error = call(*arguments).exception
    assert isinstance(error, UserError)
    assert "no shape 'nothing'; choose one of: llava-1.5-7b" in str(error)


def test_help_tells_the_three_uses(call):
    told = call("--help").stdout
    assert all(f"│ {use} " in told for use in ("task", "model", "shape"))
    assert "--shape" not in told
    assert "No such command 'modle'" in call("modle").output
