import json
from dataclasses import asdict, replace

import pytest
import torch

from encoders import UserError
from fastervlm.bench.calibrate import calibrate, check, read_bench
from fastervlm.bench.cpu import ROWS, measured_cpu
from fastervlm.bench.devices import SPECS, DeviceSpec, get_spec
from fastervlm.bench.flops import work
from fastervlm.bench.plan import job_of, plan, predict
from fastervlm.bench.plan_table import advice, check_table, plan_table, worst
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.commands.plan import plan as command
from fastervlm.reporting.provenance import machine

ALL = {"encoder": 1.0, "eager": 1.0, "projector": 1.0, "prefill": 1.0, "memory": 1.0}
SHAPE = get_shape("llava-1.5-7b")


def spec(tflops, gbytes, **efficiency):
    """A made-up GPU, of TFLOP/s and GB/s."""
    return DeviceSpec("made-up", "cuda", {"float16": tflops * 1e12}, gbytes * 1e9, ALL | efficiency)


def test_times_by_hand_where_all_compute():
    """A device whose memory costs nothing: operations over rate, stage by stage."""
    job = job_of(SHAPE, "none", 576, 1)
    found = predict(spec(100, 1e9, encoder=0.5, prefill=0.25), SHAPE.config, job, "float16")
    block = 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 577**2 * 1024
    layer = 640 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 640**2 * 4096
    assert found.stages == pytest.approx(
        {
            "encoder": 2 * (576 * 3 * 14**2 * 1024 + 24 * block) / 50e12,
            "projector": 2 * 576 * (1024 * 4096 + 4096**2) / 100e12,
            "prefill": 2 * (32 * layer + 4096 * 32064) / 25e12,
        }
    )
    assert found.first_token == pytest.approx(sum(found.stages.values()))
    assert not found.at_floor


def test_times_by_hand_where_all_read():
    """A device whose operations cost nothing: two bytes for each weight that is read, however many tokens."""
    device = spec(1e9, 1000, memory=0.5)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    for kept, batch in ((58, 1), (29, 8)):
        found = predict(device, SHAPE.config, job_of(SHAPE, "cls", kept, batch), "float16")
        assert found.floor == found.stages["prefill"] == pytest.approx(2 * (32 * layer + 4096 + 32064 * 4096) / 500e9)
        assert found.stages["projector"] == pytest.approx(2 * (1024 * 4096 + 4096**2 + 2 * 4096) / 500e9)
        assert found.at_floor
    whole, pruned = (predict(device, SHAPE.config, job_of(SHAPE, *case, 1), "float16").stages["encoder"] for case in CASES)
    assert pruned / whole == pytest.approx(23 / 24, abs=0.001)  # the last block is not read


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
    for batch, device in ((1, SPECS["a100"]), (1, SPECS["h100"]), (2, SPECS["h100"])):
        result = plan(SHAPE, device, "float16", ["cls"], [58], [batch])
        most = result.useless_below(batch)
        times = [predict(device, SHAPE.config, job_of(SHAPE, "cls", k, batch), "float16") for k in (1, most, most + 1)]
        assert times[0].stages["prefill"] == times[1].stages["prefill"] == times[0].floor < times[2].stages["prefill"]
        assert f"Batch {batch}: fewer than {most} tokens" in advice(result)[0]
    result = plan(SHAPE, SPECS["a100"], "float16", ["cls"], [58], [1, 64])
    assert result.useless_below(64) == 0
    assert advice(result)[1].startswith("Batch 64: fewer tokens make the prefill shorter down to one")


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
    assert [row[-1] for row in cells][::4] == ["1.00", "1.00"]
    quick = {row.method: row.predicted.first_token for row in result.rows[:4]}
    assert quick["cls"] < quick["eager-maps"] < quick["none"]
    assert quick["cls"] < quick["fastv"] < quick["none"]


def bench_of(maker, path, batches=(1, 8), decode=True, **changes):
    """The file of a benchmark on a device that does as the roofline says."""
    rows = []
    for method, kept in (("none", 576), ("cls", 288), ("cls", 58), ("cls", 1), ("fastv", 58), ("eager-maps", 58)):
        for batch in batches:
            job = job_of(SHAPE, method, kept, batch)
            told, cache = predict(maker, SHAPE.config, job, "float16"), 1_000_000 * batch
            read = 2 * work(SHAPE.config, job).parameters["prefill"] + cache
            stages = {"image_processing": 0.25 * batch, "selection": 0.5, "splice": 1.5, **told.stages}
            row = {
                "method": method,
                "batch": batch,
                "job": asdict(job),
                "kv_cache_bytes": cache,
                "time_to_first_token_s": {"median": sum(stages.values())},
                "stages_s": {name: {"median": seconds} for name, seconds in stages.items()},
            }
            if decode:
                row["decode_tokens_per_s"] = {"median": batch * maker.reads_per_s / read}
            rows.append(row)
    rows.append({"method": "visionzip", "job": None})
    told = {"shape": "llava-1.5-7b", "dtype": "float16", "text_tokens": 64, "device": "cuda (Made-up)", "rows": rows}
    path.write_text(json.dumps(told | changes))
    return path


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("flops", "memory"), [(300, 2000), (900, 500), (20, 3000)])
def test_known_efficiencies_are_found_again(tmp_path, flops, memory, decode):
    """Whatever is guessed at first; without decoding the memory's comes from prefills at their floor."""
    true = {"encoder": 0.5, "eager": 0.25, "projector": 0.75, "prefill": 0.6, "memory": 0.7}
    bench = read_bench(bench_of(spec(flops, memory, **true), tmp_path / "b.json", decode=decode))
    guess = spec(flops, memory, encoder=0.3, eager=0.3, projector=0.9, prefill=0.5, memory=0.9)
    found = calibrate(guess, bench)
    reads = decode or flops > 20
    for name, share in true.items():
        if name != "memory" or reads:
            assert found.efficiency[name] == pytest.approx(share), name
    assert (found.image_s, found.overhead_s) == pytest.approx((0.25, 2.0))
    for each in check(guess, bench):
        eager = each.row.method == "eager-maps"
        assert each.error == pytest.approx(0, abs=1e-9) or (each.row.job.kept == 1 and not decode) or eager
        assert each.error_before < -0.2


def test_each_row_is_predicted_by_the_others(tmp_path):
    """A row that is out of line does not excuse itself."""
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1])
    told = json.loads(path.read_text())
    told["rows"][2]["stages_s"]["encoder"]["median"] *= 10
    told["rows"][2]["time_to_first_token_s"]["median"] *= 2
    path.write_text(json.dumps(told))
    bench = read_bench(path)
    checks = check(spec(300, 2000), bench)
    assert checks[2].error == pytest.approx(-0.5, abs=1e-6)
    assert all(abs(each.error) < 1e-6 for each in checks[:2] + checks[3:])
    headers, rows = check_table(checks)
    assert rows[2][-1] == "-50.0%"
    assert {len(row) for row in rows} == {len(headers)}
    assert "50.0% calibrated" in worst(checks)


def test_of_two_rows_each_is_predicted_by_the_other(tmp_path):
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1])
    told = json.loads(path.read_text())
    told["rows"] = told["rows"][:2]
    first, second = (row["stages_s"]["encoder"] for row in told["rows"])
    first["median"] *= 2
    path.write_text(json.dumps(told))
    bench = read_bench(path)
    checks = check(spec(300, 2000), bench)
    right = predict(spec(300, 2000), SHAPE.config, bench.rows[0].job, "float16").first_token + 2.25
    assert checks[0].after == pytest.approx(right)
    assert checks[1].after == pytest.approx(bench.rows[1].first_token + second["median"])


def test_calibration_needs_a_device_of_the_same_kind(tmp_path):
    bench = read_bench(bench_of(spec(1, 1), tmp_path / "b.json", device="cpu"))
    with pytest.raises(UserError, match="ran on cpu, which is not like a100"):
        calibrate(SPECS["a100"], bench)
    other = read_bench(bench_of(spec(1, 1), tmp_path / "b.json", device="cuda (NVIDIA H100 80GB HBM3)"))
    with pytest.raises(UserError, match=r"ran on cuda .NVIDIA H100 80GB HBM3., which is not like a100"):
        calibrate(SPECS["a100"], other)
    calibrate(SPECS["h100"], other)
    here, elsewhere = (
        read_bench(bench_of(spec(1, 1), tmp_path / "b.json", device="cpu", processor=name, threads=torch.get_num_threads()))
        for name in (machine(torch.device("cpu"))["processor"], "abacus")
    )
    cpu = replace(spec(1, 1), kind="cpu")
    calibrate(cpu, here)
    with pytest.raises(UserError, match=r"ran on another machine than this .processor abacus."):
        calibrate(cpu, elsewhere)


@pytest.mark.parametrize("change", [{"encoder": {"median": 0}}, {"splice": None}, {"prefill": {"median": "x"}}])
def test_a_file_with_holes_is_refused(tmp_path, change):
    path = bench_of(spec(300, 2000), tmp_path / "b.json")
    told = json.loads(path.read_text())
    told["rows"][1]["stages_s"].update(change)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="holds no benchmark of a shape"):
        read_bench(path)


def test_rates_of_this_machine_are_plausible():
    device = measured_cpu(torch.float32, seconds=0.02, tower=64, width=128, side=4)
    assert device.kind == "cpu"
    assert 1e8 < device.flops_per_s["float32"] < 1e14
    assert 1e8 < device.bytes_per_s < 1e13
    assert device.efficiency.keys() == ALL.keys()
    assert 0.001 < min(device.efficiency.values()) <= max(device.efficiency.values()) < 2
    assert tuple(device.rows) == ROWS
    assert device.rows[640] == 1


def test_a_prefill_of_few_rows_is_slower_where_that_was_measured():
    device = replace(spec(100, 1e9, prefill=0.5), rows={64: 0.25, 256: 0.75, 640: 1.0})
    rates = [device.rate("float16", "prefill", rows) / 1e12 for rows in (16, 64, 128, 256, 640, 5000)]
    assert rates == pytest.approx([12.5, 12.5, 25, 37.5, 50, 50])  # between two counts by their logarithms
    whole, short = (predict(device, SHAPE.config, job_of(SHAPE, "cls", kept, 1), "float16") for kept in (576, 1))
    flat = replace(device, rows={})
    assert predict(flat, SHAPE.config, job_of(SHAPE, "cls", 576, 1), "float16").stages == pytest.approx(whole.stages)
    once = predict(flat, SHAPE.config, job_of(SHAPE, "cls", 1, 1), "float16").stages["prefill"]
    assert short.stages["prefill"] == pytest.approx(once / 0.255, rel=0.01)


def test_published_figures_have_sensible_proportions():
    for device in SPECS.values():
        assert device.flops_per_s["float16"] == device.flops_per_s["bfloat16"] > device.flops_per_s["float32"]
        assert 50 < device.flops_per_s["float16"] / device.bytes_per_s < 500
    assert get_spec("h100", "float32").rate("float32", "encoder") == pytest.approx(0.5 * 66.9e12)


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
    assert (data["dtype"], data["shape"], data["device_spec"]["efficiency"]["prefill"]) == ("float16", "llava-1.5-7b", 0.5)
    assert [(row["method"], row["visual_token_num"], row["batch"]) for row in data["rows"]] == [
        (method, kept, batch) for batch in (1, 8) for method, kept in (("none", 576), ("cls", 288), ("cls", 58))
    ]
    for row in data["rows"]:
        whole = sum(row["stages_s"].values()) + row["rest_s"]
        assert row["time_to_first_token_s"] == pytest.approx(whole)
        assert row["rest_s"] == pytest.approx(0.25 * row["batch"] + 2)
    assert data["useless_below"].keys() == {"1", "8"}
    assert [abs(each["calibrated_error"]) < 1e-6 for each in data["checks"]] == [True] * 12
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
