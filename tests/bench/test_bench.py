import json
from dataclasses import replace

import pytest
import typer
from PIL import Image

from encoders import UserError
from fastervlm.bench import PRESETS
from fastervlm.bench import bench as run
from fastervlm.commands.bench import task as command
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support import plain_next, tiny

SHORT = {"samples": 2, "repeats": 2, "new_tokens": 2}
TOKEN = 2 * 2 * 16 * 4  # bytes of keys and values of one token in one layer: 2 heads of width 16 in float32
METHODS = ["full", "fastv", "fastv", "cls", "cls"]
FILES = {"bench.json", "bench.md", "bench.png"}


@pytest.fixture
def undrawn(monkeypatch):
    """Plots take most of the time of such a short run."""
    monkeypatch.setattr("fastervlm.bench.table.draw_panels", lambda panels, path: path.touch())


@pytest.fixture
def cases(subject, settings, tmp_path):
    """The cases of the preset at 10 and 4 of 16 tokens, and where their results go."""
    out = tmp_path / "bench-out"
    shared = settings(keep=None, limit=6, batch_size=6, max_new_tokens=2)
    return PRESETS["fastv"](subject, shared, [10, 4], 1, out), out


@pytest.fixture
def measured(subject, cases):
    """A finished run: result, cases, folder."""
    cases, out = cases
    return run(subject, cases, out_dir=out, **SHORT), cases, out


def prompts(subject, settings, count):
    """Lengths of the first prompts."""
    questions = [json.loads(line)["text"] for line in settings.question_file.read_text().splitlines()[:count]]
    texts = [f"USER: {'<image>' * tiny.PATCHES}\n{question} ASSISTANT:" for question in questions]
    return [len(subject.processor.tokenizer(text)["input_ids"]) for text in texts]


@pytest.mark.usefixtures("undrawn")
def test_rows_are_complete_and_their_numbers_right(subject, measured, tmp_path):
    _, cases, out = measured
    data = json.loads((out / "bench.json").read_text())
    assert [row["method"] for row in data["rows"]] == METHODS
    assert [row["visual_token_num"] for row in data["rows"]] == [16, 10, 4, 10, 4]
    lengths = prompts(subject, cases[0].settings, 2)
    for row, case in zip(data["rows"], cases, strict=True):
        removed = 16 - row["visual_token_num"]
        dropped = {"full": 0, "fastv": removed, "cls": 2 * removed}[row["method"]]  # in the two layers together
        assert row["kv_cache_bytes"]["values"] == [TOKEN * (2 * length - dropped) for length in lengths]
        again = replace(case.settings, answers_file=tmp_path / f"again-{case.method}-{case.visual_tokens}.jsonl")
        assert row["score"] == evaluate(subject, again)[1].summary()  # type: ignore[union-attr]
        for name, number in (("time_to_first_token_s", 4), ("total_time_s", 4), ("peak_memory_bytes", 2)):
            assert len(row[name]["values"]) == number
            assert min(row[name]["values"]) > 0
        spans = zip(row["time_to_first_token_s"]["values"], row["total_time_s"]["values"], strict=True)
        assert all(first < total for first, total in spans)
    assert all(data["rows"][0][name]["ratio"] == 1 for name in ("total_time_s", "peak_memory_bytes", "kv_cache_bytes"))
    weights = sum(part.nbytes for part in [*subject.model.parameters(), *subject.model.buffers()])
    assert (data["weights_bytes"], data["new_tokens"], data["failures"]) == (weights, 2, [])


def test_table_and_plot_are_written(measured):
    result, _, out = measured
    assert {path.name for path in out.iterdir() if path.is_file()} == FILES
    lines = (out / "bench.md").read_text().splitlines()
    assert lines[0].startswith(
        "| method | tokens | Accuracy | TTFT (ms) | total time (ms) | peak memory (MB) | KV cache (MB) |"
    )
    assert [line.split(" | ")[0] for line in lines[2:7]] == [f"| {method}" for method in METHODS]
    assert lines[2].count("×1.00") == 4
    assert "torch's CPU allocator" in lines[8]
    with Image.open(out / "bench.png") as plot:
        assert plot.width > 3000
    headers, rows = result.table()
    assert [len(row) for row in rows] == [len(headers)] * 5


@pytest.mark.usefixtures("undrawn")
def test_each_timed_answer_has_the_length_asked_for(subject, cases, monkeypatch):
    """The end token too, which this model would say at once, is put off."""
    lengths = []
    monkeypatch.setattr(subject.model.generation_config, "eos_token_id", list(range(4, 259)))

    def spy(**call):
        output = type(subject.model).generate(subject.model, **call)
        lengths.append(output.sequences.shape[1] - call["input_ids"].shape[1])
        return output

    monkeypatch.setitem(subject.model.__dict__, "generate", spy)
    monkeypatch.setattr("fastervlm.bench.run.evaluate", lambda subject, settings: evaluate(Subject(subject.path), settings))
    run(subject, cases[0][:1], out_dir=cases[1], samples=1, repeats=2, new_tokens=5)
    assert lengths == [1, 5, 5, 5]


@pytest.mark.usefixtures("undrawn")
def test_interrupted_run_leaves_answers_alone_and_goes_on(subject, cases, monkeypatch):
    cases, out = cases
    with monkeypatch.context() as broken:
        broken.setattr("fastervlm.bench.run._time", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(subject, cases, out_dir=out, **SHORT)
    assert not [path for path in out.iterdir() if path.is_file()]
    monkeypatch.setattr("fastervlm.eval.runner._answer_all", None)  # nothing is answered twice
    run(subject, cases, out_dir=out, **SHORT)
    assert {path.name for path in out.iterdir() if path.is_file()} == FILES


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_cannot_be_read_are_left_out_and_named(subject, cases):
    cases, out = cases
    (cases[0].settings.media_folder / "p0.png").write_bytes(b"")
    result = run(subject, cases[:1], out_dir=out, samples=4, repeats=1, new_tokens=1)
    assert [failure["line"] for failure in result.failures] == [1, 2]
    assert result.rows[0].score.samples == 4
    with pytest.raises(UserError, match="only 4 questions have a picture that can be read"):
        run(subject, cases[:1], out_dir=out, samples=5)


@pytest.mark.parametrize("name", SHORT)
def test_numbers_below_one_are_refused_before_anything_runs(cases, name):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is 0; it must be at least 1"):
        run(None, cases[0], out_dir=cases[1], **{name: 0})  # type: ignore[arg-type]
    case = replace(cases[0][0], settings=replace(cases[0][0].settings, annotation_file=None))
    with pytest.raises(UserError, match="--annotation-file"):
        run(None, [case], out_dir=cases[1])  # type: ignore[arg-type]


def test_counts_of_a_model_with_crops_are_shares_for_fastv(settings, tmp_path):
    tiny.llava_next().save_pretrained(tmp_path / "next")
    plain_next.processor_of("native").save_pretrained(tmp_path / "next")
    subject = Subject(str(tmp_path / "next"))
    cases = PRESETS["fastv"](subject, settings(keep=None), [16, 8, 0.25], 2, tmp_path)
    assert [(case.method, case.visual_tokens, case.settings.keep) for case in cases] == [
        ("full", 16, None),
        ("fastv", 8, 0.5),
        ("fastv", 4, 0.25),
        ("cls", 8, 8),
        ("cls", 4, 4),
    ]


@pytest.mark.usefixtures("undrawn")
def test_command_prints_the_table_and_says_where_it_is(model, bench, tmp_path, capsys):
    options = {"visual_token_num": "4", "layer": 1, "limit": 2, **SHORT, "samples": 1, "repeats": 1}
    command(model=str(model), **bench, out_dir=tmp_path / "out", **options)
    out = capsys.readouterr().out
    assert f"Table, numbers and plot: {tmp_path / 'out'}/bench.md, bench.json, bench.png" in out
    for word in ("full", "fastv", "cls", "TTFT", "×1.00"):
        assert word in out
    assert len(json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]) == 3


def test_command_ends_with_one_sentence(model, bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastervlm.bench.run._measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(typer.Exit) as ended:
        command(model=str(model), **bench, out_dir=tmp_path / "out", visual_token_num="4", layer=1, limit=2, samples=1)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("fastervlm: stopped; the same command goes on")


MISTAKES = [
    (
        {"model": None, "question_file": "q.jsonl"},
        "Give --model, --question-file, --image-folder and --annotation-file together",
    ),
    ({"annotation_file": None}, "together, or none of them"),
    ({"visual_token_num": "many"}, "--visual-token-num is 'many'"),
    ({"visual_token_num": "0"}, "keep=0"),
    ({"layer": -1}, "layer=-1"),
    ({"layer": 2, "visual_token_num": "4"}, "choose a smaller layer"),
    ({"task": "riddles"}, "no benchmark 'riddles'"),
    ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
    ({"device": "abacus"}, "abacus"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistake_is_one_sentence(model, bench, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        command(**{"model": str(model), **bench, "out_dir": tmp_path / "out"} | changes)
    assert str(raised.value).count("\n") == 0
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_reach_the_model(model, bench, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    options = {"visual_token_num": "16", "limit": 2, "samples": 1, "repeats": 1, "new_tokens": 1}
    command(model=str(model), **bench, out_dir=tmp_path, **options, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["quantize"] == f"{bits}bit"
    assert f"in {bits}bit and float32" in (tmp_path / "bench.md").read_text()
    with pytest.raises(UserError, match=f"quantize is '{bits}bit' there and None now"):
        command(model=str(model), **bench, out_dir=tmp_path, **options)
