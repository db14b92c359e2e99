import json

import pytest
import torch
from PIL import Image

from encoders import UserError
from fastervlm.bench import speed as module
from fastervlm.bench.speed import speed
from fastervlm.bench.stages import STAGES
from fastervlm.bench.variants import Variant, variants
from fastervlm.commands.bench_speed import model as command_of_model
from fastervlm.commands.bench_speed import shape as command
from tests.support import tiny

METHODS = ["none", "cls", "fastv", "visionzip", "eager-maps"]
TIMES = ("time_to_first_token_s", "total_time_s", "decode_tokens_per_s", "samples_per_s")


@pytest.fixture
def undrawn(monkeypatch):
    """Plots take most of the time of such a short run."""
    monkeypatch.setattr("fastervlm.bench.speed_table.draw_panels", lambda panels, path: path.touch())


def run(workload, methods=METHODS, budgets=(16, 4), batches=(1, 2), **settings):
    settings = {"repeats": 2, "new_tokens": 3, **settings}
    return speed(workload, variants(workload, methods, budgets, batches, 1), **settings)


@pytest.mark.parametrize("name", ["tiny", "tiny-next", "tiny-video"])
def test_file_holds_all_that_was_measured(workloads, name, tmp_path, undrawn):
    workload = workloads[name]
    run(workload).write(tmp_path / "out" / "speed.json")
    data = json.loads((tmp_path / "out" / "speed.json").read_text())
    about = [data[key] for key in ("model", "shape", "dtype", "text_tokens", "parts", "num_visual_tokens")]
    assert about == [name, name, "float32", 12, workload.shape.parts, 16]
    assert data["parameters"] == sum(parameter.numel() for parameter in workload.model.parameters())
    assert {"command", "device", "processor", "threads", "cores", "platform", "versions", "load_average"} < data.keys()
    named = [(row["method"], row["visual_token_num"], row["batch"]) for row in data["rows"]]
    assert named == [(method, 16 if method == "none" else 4, batch) for batch in (1, 2) for method in METHODS]
    for row in data["rows"]:
        for name in TIMES:
            assert len(row[name]["values"]) == 2
            assert min(row[name]["values"]) > 0
        assert list(row["stages_s"]) == list(STAGES)
        assert row["kv_cache_bytes"] > 0 < row["peak_memory_bytes"]
        if row["method"] == "visionzip":
            assert row["macs"] is row["job"] is row["flops"]["formula"] is None
        else:
            assert row["flops"]["formula"] == row["flops"]["counted"] == 2 * row["macs"]["total"]
            assert row["job"]["batch"] == row["batch"]


def test_ratios_are_taken_within_rounds(workloads, undrawn):
    """Against the unpruned row of the same batch."""
    result = run(workloads["tiny"], ["cls", "eager-maps"], budgets=(8, 4))
    data = result.summary()
    rows = {(row["method"], row["visual_token_num"], row["batch"]): row for row in data["rows"]}
    for (_, _, batch), row in rows.items():
        times, base = (x["time_to_first_token_s"]["values"] for x in (row, rows["none", 16, batch]))
        assert row["speedup"] == pytest.approx(sum(b / t for b, t in zip(base, times, strict=True)) / 2)
        ratio = sum(t / b for b, t in zip(base, times, strict=True)) / 2
        assert row["time_to_first_token_s"]["ratio"] == pytest.approx(ratio)


def test_rates_follow_from_the_times(workloads, monkeypatch):
    """Three tokens for each of two prompts: the first after 3 s, the others 2 s later."""
    ticks = iter([-1.0, 0.0, 3.0, 5.0])
    monkeypatch.setattr("fastervlm.reporting.measure.time.perf_counter", lambda: next(ticks))
    found = module._time(workloads["tiny"], Variant("none", 16, 2), 3)
    assert found == {
        "time_to_first_token_s": 3.0,
        "total_time_s": 5.0,
        "samples_per_s": 2 / 5,
        "decode_tokens_per_s": 2 * 2 / 2,
    }


def test_image_processing_is_in_the_time_to_the_first_token(workloads, monkeypatch):
    """The clock starts before the processor does, and no hook is on the model while it runs."""
    workload, seen = workloads["tiny"], []
    process, generate = type(workload).process, type(workload.model).generate
    monkeypatch.setattr(type(workload), "process", lambda *args: seen.append("process") or process(*args))
    monkeypatch.setattr(
        "fastervlm.reporting.measure.FirstTokenClock.start", lambda self: seen.append("start") or setattr(self, "seconds", None)
    )

    def hooks():
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in workload.model.modules())

    def spy(**call):
        seen.append(f"hooked {hooks() > own}")
        return generate(workload.model, **call)

    workload.model(**process(workload, 1))
    own = hooks()  # transformers' own, which record hidden states
    monkeypatch.setitem(workload.model.__dict__, "generate", spy)
    module._time(workload, Variant("none", 16, 1), 2)
    module._stages(workload, Variant("none", 16, 1))
    assert seen == ["start", "process", "hooked False", "process", "hooked True"]


def test_rounds_go_through_all_variants_in_turns(workloads, monkeypatch):
    order = []
    for name in ("_time", "_stages"):
        monkeypatch.setattr(
            module,
            name,
            lambda _, variant, *rest, name=name: order.append((name, variant.method)) or dict.fromkeys(STAGES, 1.0),
        )
    monkeypatch.setattr(module, "_count", lambda *_: {})
    run(workloads["tiny"], ["cls"], batches=[1], repeats=2)
    forth = [("_time", "none"), ("_stages", "none"), ("_time", "cls"), ("_stages", "cls")]
    assert order == [*forth, *forth[2:], *forth[:2]]


def test_what_does_not_fit_is_left_out_and_named(workloads, monkeypatch, tmp_path, undrawn):
    count = module._count

    def small(workload, variant):
        if variant.method in full:
            raise torch.OutOfMemoryError("full")
        return count(workload, variant)

    monkeypatch.setattr(module, "_count", small)
    full = ("eager-maps",)
    result = run(workloads["tiny"], ["cls", "eager-maps"], batches=[2])
    result.write(tmp_path / "a.json")
    assert [row.variant.method for row in result.rows] == ["none", "cls"]
    assert result.failures == [{"method": "eager-maps", "visual_token_num": 4, "batch": 2}]
    assert "eager-maps 4 at batch 2 did not fit." in (tmp_path / "a.md").read_text()
    full = ("none",)
    with pytest.raises(UserError, match="does not fit into the device's memory at batch 2"):
        run(workloads["tiny"], ["cls"], batches=[2])


def test_methods_to_compare_are_next_to_each_other(workloads):
    found = variants(workloads["tiny"], ["cls", "eager-maps"], [8, 4], [1])
    assert found == variants(workloads["tiny"], ["cls", "reference-route"], [8, 4], [1])  # its earlier name
    assert [(each.method, each.kept) for each in found[1:]] == [
        (method, kept) for kept in (8, 4) for method in ("cls", "eager-maps")
    ]


def test_counts_are_those_below_all(workloads):
    found = variants(workloads["tiny"], ["stock", "none", "cls"], [0.5, 8, 16, 1], [2, 2])
    assert [(each.method, each.kept, each.batch) for each in found] == [("none", 16, 2), ("cls", 8, 2), ("cls", 1, 2)]


MISTAKES = [
    ({"shape": "llava"}, "no shape 'llava'; choose one of: llava-1.5-7b"),
    ({"visual_token_num": "16,17"}, "--visual-token-num holds 17, but a picture, crop or frame has 16"),
    ({"visual_token_num": "0"}, "keep=0"),
    ({"visual_token_num": "x"}, "--visual-token-num is 'x'"),
    ({"methods": "cls,magic"}, "no method 'magic'; choose from: none, stock, eager-maps, cls,"),
    ({"methods": "fastv", "layer": 3}, "choose a smaller layer"),
    ({"batch": "0"}, "--batch is '0'"),
    ({"batch": "two"}, "--batch is 'two'"),
    ({"text_tokens": 1}, "--text-tokens is 1"),
    ({"repeats": 0}, "--repeats is 0"),
    ({"new_tokens": 0}, "--new-tokens is 0"),
    ({"dtype": "int8"}, "dtype='int8'"),
    ({"device": "abacus"}, "abacus"),
    ({"out": "speed.txt"}, r"--out .*speed.txt must end in .json"),
    ({"out": "."}, "is a folder; give a file"),
    ({"out": "/proc/none/speed.json"}, "output folder /proc/none cannot be made"),
    ({"shape": "tiny-video", "visual_token_num": "58"}, "holds 58, but a picture, crop or frame has 16"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistake_is_one_sentence(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    given = {"shape": "tiny", "visual_token_num": "4"} | changes
    if given.get("out"):
        given["out"] = tmp_path / given["out"]
    with pytest.raises(UserError, match=message) as raised:
        command(**given)
    assert str(raised.value).count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_command_measures_a_shape(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command("tiny", visual_token_num="8,4", batch="1,2", repeats=1, new_tokens=1, dtype="bfloat16")
    assert {path.name for path in tmp_path.iterdir()} == {"bench-tiny.json", "bench-tiny.md", "bench-tiny.png"}
    data = json.loads((tmp_path / "bench-tiny.json").read_text())
    assert (data["dtype"], data["random_weights"], data["new_tokens"], len(data["rows"])) == ("bfloat16", True, 1, 10)
    assert "decode_tokens_per_s" not in data["rows"][0]
    out = capsys.readouterr().out
    assert "bench-tiny.md, bench-tiny.json, bench-tiny.png" in out
    assert "TTFT" in out
    text = (tmp_path / "bench-tiny.md").read_text()
    assert text.count("| none |") == 6
    for word in ("scoring and selection", "GMAC", "GFLOP counted", "random weights"):
        assert word in text
    with Image.open(tmp_path / "bench-tiny.png") as plot:
        assert plot.width > 3000


def test_command_measures_a_checkpoint(tmp_path, undrawn):
    folder = tiny.save_llava(tmp_path / "tiny")
    out = tmp_path / "new" / "speed.json"
    command_of_model(model=str(folder), methods="cls", visual_token_num="4", repeats=1, new_tokens=2, text_tokens=6, out=out)
    data = json.loads(out.read_text())
    assert (data["model"], data["shape"], data["random_weights"]) == ("tiny", None, False)
    assert [row["method"] for row in data["rows"]] == ["none", "cls"]
    assert data["rows"][0]["flops"]["counted"] == data["rows"][0]["flops"]["formula"]
