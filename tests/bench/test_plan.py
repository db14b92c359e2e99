import json
from dataclasses import replace

import pytest
import torch

from encoders import UserError
from fastervlm.bench.cpu import measured_cpu
from fastervlm.bench.devices import SPECS, get_spec
from fastervlm.bench.plan import job_of, plan, predict
from fastervlm.bench.plan_table import advice, plan_table
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.commands.plan import plan as command
from fastervlm.reporting.provenance import machine
from tests.support.benches import ALL, SHAPE, bench_of, spec


def test_times_by_hand_where_all_compute():
    """A device whose memory costs nothing: operations over rate, stage by stage, attention by a rate of its own."""
    job = job_of(SHAPE, "none", 576, 1)
    device = spec(100, 1e9, encoder=0.5, attention=0.2, prefill=0.25, causal=0.1, maps=0.05)
    found = predict(device, SHAPE.config, job, "float16")
    block, pairs = 577 * (4 * 1024**2 + 2 * 1024 * 4096), 2 * 577**2 * 1024
    layer, causal = 640 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 640**2 * 4096
    patches = 576 * 3 * 14**2 * 1024
    assert found.stages == pytest.approx(
        {
            "encoder": 2 * (patches + 24 * block) / 50e12 + 2 * 24 * pairs / 20e12,
            "projector": 2 * 576 * (1024 * 4096 + 4096**2) / 100e12,
            "prefill": 2 * (32 * layer + 4096 * 32064) / 25e12 + 2 * 32 * causal / 10e12,
        }
    )
    assert found.first_token == pytest.approx(sum(found.stages.values()))
    assert not found.at_floor
    assert found.bound == ("prefill", pytest.approx(2 * (32 * layer + 4096 * 32064) / 25e12 / found.first_token))
    maps = predict(device, SHAPE.config, job_of(SHAPE, "eager-maps", 58, 1), "float16").stages["encoder"]
    assert maps == pytest.approx(2 * (patches + 24 * block) / 50e12 + 2 * 24 * pairs / 5e12)


def test_times_by_hand_where_all_read():
    """A device whose operations cost nothing: two bytes for each weight that is read, however many tokens."""
    device = spec(1e9, 1000, weights=0.5, memory=0.8)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    whole = 2 * (32 * layer + 4096 + 32064 * 4096)
    for kept, batch in ((58, 1), (29, 8)):
        found = predict(device, SHAPE.config, job_of(SHAPE, "cls", kept, batch), "float16")
        assert found.floor == found.stages["prefill"] == pytest.approx(whole / 500e9)
        assert found.stages["projector"] == pytest.approx(2 * (1024 * 4096 + 4096**2 + 2 * 4096) / 500e9)
        assert found.at_floor
        cache = 2 * batch * 2 * 32 * 4096 * (64 + kept)
        assert found.step == pytest.approx((whole + cache) / 800e9)
        assert found.step_bound == ("weights", pytest.approx(whole / (whole + cache)))
        assert found.bound == ("weights", 1)
    whole, pruned = (predict(device, SHAPE.config, job_of(SHAPE, *case, 1), "float16").stages["encoder"] for case in CASES)
    assert pruned / whole == pytest.approx(23 / 24, abs=0.001)  # the last block is not read


def test_times_by_hand_where_all_launch():
    """A GPU that computes and reads in no time, but begins one operator after the other; compiled it would begin one graph."""
    found = predict(spec(1e9, 1e9, starts=1000), SHAPE.config, job_of(SHAPE, "cls", 58, 8), "float16")
    assert found.stages == pytest.approx({"encoder": 23 * 14 / 1000, "projector": 4 / 1000, "prefill": (32 * 36 + 48) / 1000})
    assert found.step == pytest.approx((32 * 36 + 48) / 1000)
    assert found.bound == found.step_bound == ("launches", 1)
    assert found.at_floor
    told = advice(plan(SHAPE, spec(1e9, 1e9, starts=1000), "float16", ["cls"], [58], [1]))
    assert "fewer than 576 tokens of each picture, crop or frame buy nothing" in told[0]
    assert "takes the 1200.0 ms that launching its operators takes" in told[0]


def test_a_cpu_does_one_after_the_other():
    """What a GPU does at the same time adds up: each stage is the sum of what it is where the rest costs nothing."""
    job = job_of(SHAPE, "fastv", 58, 2)
    alone = [spec(100, 1e9), spec(1e9, 500), spec(1e9, 1e9, starts=1e5)]
    told = [predict(device, SHAPE.config, job, "float16") for device in alone]
    both = predict(spec(100, 500, starts=1e5, kind="cpu"), SHAPE.config, job, "float16")
    for stage, seconds in both.stages.items():
        assert seconds == pytest.approx(sum(each.stages[stage] for each in told), rel=1e-3), stage
    assert both.step == pytest.approx(sum(each.step for each in told), rel=1e-3)
    assert both.floor == pytest.approx(told[1].floor + told[2].floor, rel=1e-3)
    assert not both.at_floor


CASES = (("none", 576), ("cls", 58))


@pytest.mark.parametrize("name", SHAPES)
def test_prompts_are_as_long_as_the_models(name, workloads):
    """Lengths of the unpruned prompt are the processor's; pruned ones lose all but K of each part."""
    shape = get_shape(name)
    job = job_of(shape, "none", shape.num_visual_tokens, 1, 12)
    if name in workloads:
        assert job.length == workloads[name].process(1)["input_ids"].shape[1]
    between = {"llava_next": 2 * shape.side, "llava_onevision": 2 * shape.side, "internvl": 2}  # newlines; around a picture
    newlines = between.get(shape.kind, 0)
    assert job_of(shape, "cls", 3, 1, 12).length == 12 + 3 * shape.parts + newlines
    assert job_of(shape, "eager-maps", 3, 1, 12).length == 12 + 3 * shape.parts
    assert job_of(shape, "reference-route", 3, 1, 12) == job_of(shape, "eager-maps", 3, 1, 12)  # its earlier name
    fastv = job_of(shape, "fastv", 3, 1, 12, layer=1)
    assert (fastv.length, fastv.left, fastv.fastv_layer) == (job.length, 12 + 3 * shape.parts, 1)


def test_fewer_tokens_buy_nothing_at_the_floor():
    """Where the plan says so the prefill is the same for fewer tokens, and longer for one more."""
    for batch, name in ((1, "a100"), (1, "h100"), (2, "h100")):
        device = replace(SPECS[name], launches_per_s=1e12)
        result = plan(SHAPE, device, "float16", ["cls"], [58], [batch])
        most = result.useless_below(batch)
        times = [predict(device, SHAPE.config, job_of(SHAPE, "cls", k, batch), "float16") for k in (1, most, most + 1)]
        assert times[0].stages["prefill"] == times[1].stages["prefill"] == times[0].floor < times[2].stages["prefill"]
        assert f"Batch {batch}: fewer than {most} tokens" in advice(result)[0]
    result = plan(SHAPE, replace(SPECS["a100"], launches_per_s=1e12), "float16", ["cls"], [58], [1, 64])
    assert result.useless_below(64) == 0
    assert advice(result)[1].startswith("Batch 64: fewer tokens make the prefill shorter down to one")


def test_what_the_prefill_waits_for_is_told_of_the_floor_itself():
    """On an L4 it is the weights, also where no row that is shown has so few tokens."""
    (told,) = advice(plan(SHAPE, SPECS["l4"], "float16", ["cls"], [500], [1]))
    most = plan(SHAPE, SPECS["l4"], "float16", ["cls"], [500], [1]).useless_below(1)
    weights = predict(SPECS["l4"], SHAPE.config, job_of(SHAPE, "cls", most, 1), "float16").parts["prefill"]["weights"]
    assert 0 < most < 500
    assert f"fewer than {most} tokens" in told
    assert f"takes the {1e3 * weights:.1f} ms that reading the weights takes" in told


def test_rows_are_the_unpruned_model_and_each_method_below_all():
    result = plan(SHAPE, SPECS["l4"], "float16", ["none", "cls", "fastv", "eager-maps"], [576, 58], [1, 8])
    names = [(row.method, row.kept, row.batch) for row in result.rows]
    assert names == [
        (method, 576 if method == "none" else 58, batch)
        for batch in (1, 8)
        for method in ("none", "cls", "fastv", "eager-maps")
    ]
    headers, cells = plan_table(result)
    assert {len(row) for row in cells} == {len(headers)}
    assert [row[8] for row in cells][::4] == ["1.00", "1.00"]
    quick = {row.method: row.predicted.first_token for row in result.rows[:4]}
    assert quick["cls"] < quick["eager-maps"] < quick["none"]
    assert quick["cls"] < quick["fastv"] < quick["none"]


def test_rates_of_this_machine_are_plausible():
    device = measured_cpu(torch.float32, seconds=0.02, tower=64, width=128, side=4)
    assert device.kind == "cpu"
    assert 1e8 < device.flops_per_s["float32"] < 1e14
    assert 1e8 < device.bytes_per_s < 1e13
    assert device.efficiency.keys() == ALL.keys()
    assert 1e-4 < min(device.efficiency.values()) <= max(device.efficiency.values()) < 100
    assert 1e2 < device.launches_per_s < 1e8


def test_published_figures_have_sensible_proportions():
    for device in SPECS.values():
        assert device.flops_per_s["float16"] == device.flops_per_s["bfloat16"] > device.flops_per_s["float32"]
        assert 50 < device.flops_per_s["float16"] / device.bytes_per_s < 500
    assert get_spec("h100", "float32").rate("encoder", "float32") == pytest.approx(0.5 * 66.9e12)


MISTAKES = [
    ({"shape": "llava"}, "no shape 'llava'"),
    ({"device_spec": "abacus"}, "no device 'abacus'; choose one of: h200, h100, a100, l4, rtx4090, cpu-measured"),
    ({"dtype": "int4"}, "dtype='int4' is not known"),
    ({"visual_token_num": "577"}, "--visual-token-num holds 577"),
    ({"shape": "video-llava-7b", "visual_token_num": "288"}, "holds 288, but a picture, crop or frame has 256"),
    ({"methods": "cls,visionzip"}, "no plan for method 'visionzip'"),
    ({"batch": "1,x"}, "--batch is '1,x'"),
    ({"text_tokens": 0}, "--text-tokens is 0"),
    ({"layer": -1}, "--layer is -1, but llava-1.5-7b has the layers 0 to 31"),
    ({"layer": 32}, "--layer is 32, but llava-1.5-7b has the layers 0 to 31"),
    ({"out": "/proc/none/plan.json"}, "output folder /proc/none cannot be made"),
    ({"out": "plan.md"}, "plan.md must end in .json"),
    ({"calibrate": "none.json"}, "none.json cannot be read"),
    ({"calibrate": "other.json"}, "other.json holds no benchmark of a shape"),
    ({"calibrate": "broken.json"}, "broken.json holds no benchmark of a shape"),
    ({"calibrate": "empty.json"}, "empty.json holds no benchmark of a shape"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistake_is_one_sentence(tmp_path, changes, message):
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text(json.dumps({"shape": "tiny", "dtype": "float16", "device": "cpu", "rows": []}))
    files = {name: tmp_path / value for name, value in changes.items() if name in ("calibrate", "out")}
    with pytest.raises(UserError, match=message) as raised:
        command(**{"shape": "llava-1.5-7b", "device_spec": "a100"} | changes | files)
    assert str(raised.value).count("\n") == 0


def test_command_writes_plan_and_errors(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SPECS, "a100", spec(312, 2040))
    bench = bench_of(spec(312, 2040, prefill=0.5), tmp_path / "b.json")
    out = tmp_path / "new" / "plan.json"
    command("llava-1.5-7b", "a100", "288,58", batch="1,8", calibrate=bench, out=out)
    data = json.loads(out.read_text())
    assert (data["dtype"], data["shape"]) == ("float16", "llava-1.5-7b")
    assert data["device_spec"]["efficiency"]["prefill"] == pytest.approx(0.5, rel=1e-3)
    assert [(row["method"], row["visual_token_num"], row["batch"]) for row in data["rows"]] == [
        (method, kept, batch) for batch in (1, 8) for method, kept in (("none", 576), ("cls", 288), ("cls", 58))
    ]
    for row in data["rows"]:
        whole = sum(row["stages_s"].values()) + row["rest_s"]
        assert row["time_to_first_token_s"] == pytest.approx(whole)
        assert row["step_s"] == pytest.approx(sum(row["parts_s"]["step"].values()))
        assert row["bound"] == {"rest": pytest.approx(row["rest_s"] / whole)}  # the made-up device is fast
        assert row["rest_s"] == pytest.approx(0.25 * row["batch"] + 2)
    assert data["useless_below"].keys() == {"1", "8"}
    assert [abs(each["calibrated_error"]) < 1e-3 for each in data["checks"]] == [True] * 12
    printed, text = capsys.readouterr().out, out.with_suffix(".md").read_text()
    for shown in (printed, text):
        assert "Largest error" in shown
        assert "Batch 8: " in shown
    assert "Tables and numbers" in printed


@pytest.mark.parametrize("width", [80, 40])
def test_tables_fit_the_terminal(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setitem(SPECS, "a100", spec(312, 2040))
    monkeypatch.setenv("COLUMNS", str(width))
    bench = bench_of(spec(312, 2040, prefill=0.5), tmp_path / "b.json")
    command("llava-1.5-7b", "a100", "288,58", batch="1,8", calibrate=bench)
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if not line.startswith(("Batch ", "Largest error"))]
    assert max(map(len, tables)) <= width
    for word in ("projector", "prefill", "speed-up", "calibrated", "specified"):
        assert any(word in line for line in tables), word


@pytest.mark.parametrize(
    ("processor", "dtype", "message"),
    [("abacus", None, "ran on another machine than this"), (None, "bfloat16", "was measured in float16; leave --dtype out")],
)
def test_command_refuses_an_unfit_benchmark_before_it_measures(tmp_path, monkeypatch, processor, dtype, message):
    monkeypatch.setattr("fastervlm.bench.cpu.measured_cpu", lambda dtype: pytest.fail("measured"))
    here = {**machine(torch.device("cpu"))} | ({"processor": processor} if processor else {})
    bench = bench_of(spec(1, 1), tmp_path / "b.json", device="cpu", processor=here["processor"], threads=here["threads"])
    with pytest.raises(UserError, match=message):
        command("llava-1.5-7b", "cpu-measured", calibrate=bench, dtype=dtype)


def test_command_plans_for_this_machine(capsys, monkeypatch):
    quick = measured_cpu(torch.bfloat16, seconds=0.01, tower=64, width=64, side=2)
    monkeypatch.setattr("fastervlm.bench.cpu.measured_cpu", lambda dtype: quick)
    command("llava-1.5-1b", "cpu-measured")
    assert "Batch 1: " in capsys.readouterr().out
