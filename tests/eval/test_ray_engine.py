"""`--engine ray`: the same answers as in one process, whatever dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from encoders import UserError
from fastervlm import cli
from fastervlm.eval.answers import journal_file
from fastervlm.eval.ray_engine import RayEngine
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support import ray_workers
from tests.support.ray_workers import KilledOnce, Notes, Poisoned

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(shared_ray):
    """A Ray whose workers are sent the classes of the tests, which they cannot import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_workers)
    yield shared_ray
    cloudpickle.unregister_pickle_by_value(ray_workers)


@pytest.fixture
def whole(subject, settings, tmp_path):
    """The answers of one process, in bytes."""

    def answer(**changes):
        chosen = settings(answers_file=tmp_path / "whole" / "n.jsonl", **changes)
        return evaluate(subject, chosen)[0], chosen.answers_file.read_bytes()

    return answer


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(("workers", "changes"), [(2, {"keep": None, "batch_size": 3}), (1, {"method": "random"})])
def test_workers_answer_as_one_process_to_the_byte(model, settings, bench, whole, workers, changes):
    (bench["image_folder"] / "p1.png").write_bytes(b"")
    expected, answers = whole(**changes)
    chosen = settings(**changes)
    protocol, score = evaluate(Subject(str(model)), chosen, RayEngine(workers))
    assert chosen.answers_file.read_bytes() == answers
    assert score is not None
    assert score.summary() == expected["score"]
    assert [failure["line"] for failure in protocol["failures"]] == [3, 4]
    told = {"engine": "ray", "workers": workers, "machines": 1}
    assert {key: protocol.pop(key) for key in told} == told
    assert expected.pop("engine") == "local"
    for timed in ("samples_per_second", "mean_time_to_first_token_s"):
        assert protocol.pop(timed) > 0
        expected.pop(timed)
    assert protocol == expected


def test_worker_killed_in_mid_run_costs_a_batch(pool, model, settings, whole, capsys):
    chosen = settings()
    protocol, _ = evaluate(Subject(str(model)), chosen, RayEngine(2, worker=KilledOnce))
    assert protocol["failed"] == 0
    assert chosen.answers_file.read_bytes() == whole()[1]
    asked = Notes(chosen.answers_file).read()
    assert sorted(line for lines in {tuple(lines) for _, lines in asked} for line in lines) == list(range(1, 11)), (
        "whole batches"
    )
    assert len({process for process, lines in asked if 5 in lines}) == 2
    out, err = capsys.readouterr()
    assert out == "", "standard output is the command's"
    assert err.count("A worker was lost; another takes its place") == 1


def test_question_that_kills_every_worker_is_set_aside(pool, subject, model, settings, bench, whole):
    chosen = settings()
    protocol, _ = evaluate(Subject(str(model)), chosen, RayEngine(1, worker=Poisoned))
    picture = str(bench["image_folder"] / "p2.png")
    assert (protocol["answered"], protocol["failed"]) == (9, 1)
    prompt = json.loads(bench["question_file"].read_text().splitlines()[5])["text"]
    named = {"line": 6, "question_id": "p2", "prompt": prompt, "image": picture}
    assert protocol["failures"] == [
        named | {"reason": "kills every worker that is asked about it"},
    ]
    asked = [lines for _, lines in Notes(chosen.answers_file).read()]
    assert asked.count([6]) == 2
    assert asked.count([5]) == 1
    assert len(chosen.answers_file.read_text().splitlines()) == 9
    assert journal_file(chosen.answers_file).exists()
    assert evaluate(subject, settings())[0]["failed"] == 0, "one process tries it again"
    assert chosen.answers_file.read_bytes() == whole()[1]


def test_it_is_said_what_a_run_waits_for(pool, model, settings, whole, monkeypatch):
    import ray

    class Other:
        """Holds all CPUs until it is told that somebody waits for them."""

    other: Any = ray.remote(Other).options(num_cpus=2).remote()
    told = []
    ray.get(other.__ray_ready__.remote())

    def tell(*words):
        told.extend(words)
        if str(*words).startswith("No worker"):
            ray.kill(other)

    monkeypatch.setattr("fastervlm.eval.ray_pool.PATIENCE", 2.0)
    monkeypatch.setattr("fastervlm.eval.ray_engine.console.print", tell)
    chosen = settings()
    evaluate(Subject(str(model)), chosen, RayEngine(1))
    sentence = "No worker has begun yet: each needs 2 CPUs (0 of 2 free); the run waits until Ray's other jobs leave it that."
    assert told.count(sentence) == 1
    assert chosen.answers_file.read_bytes() == whole()[1]


def alive(process):
    """Whether a process still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(reached, seconds=300):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def test_run_that_is_killed_takes_its_workers_along_and_goes_on(pool, subject, model, settings, bench, whole):
    """The run joins a cluster, where its workers do not die as children of it; one process goes on with it."""
    chosen = settings()
    notes, journal = Notes(chosen.answers_file), journal_file(chosen.answers_file)
    data = bench["question_file"].parent
    command = [sys.executable, "-m", "tests.support.ray_workers", *map(str, (model, data, chosen.answers_file, pool))]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        until(lambda: run.poll() is not None or [9, 10] in [lines for _, lines in notes.read()])
        until(lambda: run.poll() is not None or journal.read_bytes().count(b"\n") == 9)
        assert run.poll() is None, run.communicate()[1]
        run.kill()
    until(lambda: not alive(notes.read()[0][0]))
    assert journal.read_bytes().count(b"\n") == 9
    evaluate(subject, chosen)
    assert chosen.answers_file.read_bytes() == whole()[1]


def test_command_starts_a_ray_of_its_own_and_ends_it(model, settings, bench, whole, tmp_path):
    chosen = settings()
    files = {"--question-file": bench["question_file"], "--image-folder": bench["image_folder"]}
    options = files | {"--annotation-file": bench["annotation_file"], "--answers-file": chosen.answers_file}
    given = [str(part) for option in options.items() for part in option]
    short = ["--visual-token-num", "5", "--batch-size", "4", "--max-new-tokens", "3", "--engine", "ray", "--workers", "2"]
    relative = os.path.relpath(model, tmp_path)
    command = [sys.executable, "-m", "fastervlm.cli", "eval", "textvqa", *given, *short, "--model", relative]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "Samples: 10"
    told = [line.split()[0] for line in done.stderr.splitlines() if line]
    assert told == ["2", "Answers", "questions:"], "Ray is quiet"
    assert chosen.answers_file.read_bytes() == whole()[1]


@pytest.fixture
def command(monkeypatch, capsys, model, bench, tmp_path):
    """`fastervlm eval textvqa` in this process; gives exit code, stdout and stderr."""

    def call(*arguments):
        files = ["--question-file", bench["question_file"], "--image-folder", bench["image_folder"], "--model", model]
        given = ["fastervlm", "eval", "textvqa", *files, "--answers-file", tmp_path / "a" / "n.jsonl", *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", 2], "--workers and --address belong to --engine ray; add it, or leave them out."),
        (["--address", "auto"], "--workers and --address belong to --engine ray; add it, or leave them out."),
        (["--engine", "ray", "--workers", 0], "--workers is 0; it must be at least 1."),
        (["--engine", "ray", "--workers", 3], "--workers 3 needs 3 CPUs and Ray sees 2; ask for at most as many."),
        (["--engine", "ray", "--model", "/no/where"], "There is no checkpoint '/no/where': neither a folder with one nor a"),
    ],
)
def test_mistakes_are_told_in_one_sentence(command, arguments, sentence, tmp_path):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    told = [line for line in err.splitlines() if not line.endswith("the model.")]
    assert len(told) == 1
    assert told[0].startswith(f"fastervlm: {sentence}")
    assert not list(tmp_path.glob("a/*"))


def test_without_ray_it_says_how_to_install_it(command, monkeypatch):
    monkeypatch.setattr("fastervlm.reporting.extras.find_spec", lambda name: None)
    code, _, err = command("--engine", "ray")
    assert (code, err) == (2, "fastervlm: --engine ray needs ray; install it with: pip install 'fastervlm[ray]'.\n")


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9"])
def test_address_without_a_cluster_is_one_sentence_at_once(address, monkeypatch):
    import ray

    from fastervlm.eval.ray_session import session

    def nothing(address, **settings):
        raise ConnectionError("Could not find any running Ray instance. Please specify the one to connect to.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nothing)
    told = f"^There is no Ray cluster to join at --address {address} \\(.*\\); start one by `ray start --head`, or leave "
    with pytest.raises(UserError, match=told), session(address, 1):
        pass


def test_one_device_cannot_be_named(model, settings):
    with pytest.raises(UserError, match="name the GPUs by CUDA_VISIBLE_DEVICES with --engine ray"):
        evaluate(Subject(str(model), device="cpu:0"), settings(), RayEngine())


def test_ray_is_imported_only_when_asked_for():
    code = "import sys, fastervlm.cli, fastervlm.eval.ray_engine as r; r.RayEngine(2); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
