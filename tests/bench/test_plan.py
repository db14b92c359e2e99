import json
from dataclasses import asdict, replace

import pytest
import torch

from encoders import UserError
from fastervlm.bench.calibrate import calibrate, check, read_bench
from fastervlm.bench.cpu import measured_cpu
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import SPECS, get_spec
from fastervlm.bench.fit import fit
from fastervlm.bench.plan import job_of, plan, predict
from fastervlm.bench.plan_table import advice, check_table, plan_table, worst
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.bench.terms import Term
from fastervlm.commands.plan import plan as command
from fastervlm.reporting.provenance import machine

PRODUCTS = ("encoder", "projector", "prefill", "attention", "maps", "causal")
ALL = dict.fromkeys((*PRODUCTS, "weights", "memory", "launches"), 1.0)
SHAPE = get_shape("llava-1.5-7b")


def spec(tflops, gbytes, starts=1e12, kind="cuda", **efficiency):
    """A made-up device, of TFLOP/s, GB/s and launches/s."""
    return DeviceSpec("made-up", kind, {"float16": tflops * 1e12}, gbytes * 1e9, starts, ALL | efficiency)


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


def bench_of(maker, path, batches=(1, 8), decode=True, **changes):
    """The file of a benchmark on a device that does as the roofline says."""
    rows = []
    for method, kept in (("none", 576), ("cls", 288), ("cls", 58), ("cls", 1), ("fastv", 58), ("eager-maps", 58)):
        for batch in batches:
            job = job_of(SHAPE, method, kept, batch)
            told = predict(maker, SHAPE.config, job, "float16")
            stages = {"image_processing": 0.25 * batch, "selection": 0.5, "splice": 1.5, **told.stages}
            row = {
                "method": method,
                "batch": batch,
                "job": asdict(job),
                "time_to_first_token_s": {"median": sum(stages.values())},
                "stages_s": {name: {"median": seconds} for name, seconds in stages.items()},
            }
            if decode:
                row["decode_tokens_per_s"] = {"median": batch / told.step}
            rows.append(row)
    rows.append({"method": "visionzip", "job": None})
    told = {"shape": "llava-1.5-7b", "dtype": "float16", "text_tokens": 64, "device": "cuda (Made-up)", "rows": rows}
    path.write_text(json.dumps(told | changes))
    return path


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("flops", "memory", "launches"), [(300, 2000, 1e6), (900, 500, 1e4), (20, 3000, 3e3)])
def test_known_shares_are_found_again(tmp_path, flops, memory, launches, decode, kind):
    """Whatever is guessed at first, rows are predicted as measured, by the other rows too; shares that rows tell come out."""
    true = {"encoder": 0.5, "attention": 0.4, "maps": 0.1, "projector": 0.75, "prefill": 0.6, "causal": 0.4}
    true |= {"weights": 0.6, "memory": 0.7, "launches": 0.8}
    bench = read_bench(bench_of(spec(flops, memory, launches, kind, **true), tmp_path / "b.json", decode=decode, device=kind))
    guess = spec(flops, memory, launches, kind, **dict.fromkeys(PRODUCTS, 0.3), weights=0.9, memory=0.9)
    found = calibrate(guess, bench)
    assert (found.image_s, found.overhead_s) == pytest.approx((0.25, 2.0))
    for row in bench.rows:
        told = predict(found, SHAPE.config, row.job, "float16")
        assert told.first_token == pytest.approx(row.first_token, rel=0.02)
        assert told.step == pytest.approx(row.step or told.step, rel=0.02)
    for each in check(guess, bench):
        assert abs(each.error) < 0.05
    if (flops, kind) == (20, "cpu"):  # products dominate there
        assert found.efficiency["prefill"] == pytest.approx(0.6, rel=0.02)
    elif decode and kind == "cuda" and flops == 300:
        assert found.efficiency["memory"] == pytest.approx(0.7, rel=0.02)


@pytest.mark.parametrize("device", [spec(1, 40, 1e5, "cpu"), spec(3, 20, 2e4, "cpu", causal=0.2, weights=0.4)])
def test_rows_of_one_length_are_predicted_from_others(tmp_path, device):
    """Fitted to five lengths of a prompt, the constants hold for lengths and batches that were not measured."""
    bench = read_bench(bench_of(device, tmp_path / "b.json", batches=[1], device="cpu"))
    guess = spec(2, 30, 5e4, "cpu", **dict.fromkeys(PRODUCTS, 0.6))
    found = calibrate(guess, bench)
    for method, kept, batch in (("cls", 144, 1), ("fastv", 144, 2), ("cls", 29, 4), ("eager-maps", 288, 1)):
        job = job_of(SHAPE, method, kept, batch)
        told, true = (predict(each, SHAPE.config, job, "float16") for each in (found, device))
        assert sum(told.stages.values()) == pytest.approx(sum(true.stages.values()), rel=0.03)
        assert told.step == pytest.approx(true.step, rel=0.05)


def test_each_row_is_predicted_by_the_others(tmp_path):
    """A row that is out of line does not excuse itself, and hardly moves the others."""
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1])
    told = json.loads(path.read_text())
    told["rows"][2]["stages_s"]["encoder"]["median"] *= 10
    told["rows"][2]["time_to_first_token_s"]["median"] *= 2
    path.write_text(json.dumps(told))
    bench = read_bench(path)
    checks = check(spec(300, 2000), bench)
    assert checks[2].error == pytest.approx(-0.5, abs=1e-3)
    assert all(abs(each.error) < 0.01 for each in checks[:2] + checks[3:])
    headers, rows = check_table(checks)
    assert rows[2][7] == "-50.0%"
    assert {len(row) for row in rows} == {len(headers)}
    assert "50.0% calibrated" in worst(checks)


def test_of_two_rows_each_is_predicted_by_the_other(tmp_path):
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1])
    told = json.loads(path.read_text())
    told["rows"] = told["rows"][:2]
    first, second = (row["stages_s"]["encoder"] for row in told["rows"])
    first["median"] *= 2
    told["rows"][0]["time_to_first_token_s"]["median"] += first["median"] / 2
    path.write_text(json.dumps(told))
    bench = read_bench(path)
    checks = check(spec(300, 2000), bench)
    right = predict(spec(300, 2000), SHAPE.config, bench.rows[0].job, "float16").first_token + 2.25
    assert checks[0].after.first_token == pytest.approx(right)
    assert checks[1].after.first_token == pytest.approx(bench.rows[1].first_token + second["median"], rel=1e-3)


def test_a_cut_language_model_is_predicted_with_its_layers(tmp_path):
    short = SHAPE.with_layers(2)
    job = job_of(short, "none", 576, 1)
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1], llm_layers=2)
    bench = read_bench(path)
    assert bench.shape.config.text_config.num_hidden_layers == 2
    after = check(spec(300, 2000), bench)[0].before
    assert after.stages == predict(spec(300, 2000), short.config, job, "float16").stages


def test_rows_whose_choice_has_no_formula_are_learned_from_too(tmp_path):
    """Towers without [CLS] are pruned by coverage, whose job no benchmark tells."""
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[2])
    told = json.loads(path.read_text())
    told["parts"] = 1
    row = told["rows"][1] | {"method": "coverage", "visual_token_num": 288, "prompt_tokens": 352, "job": None}
    path.write_text(json.dumps(told | {"rows": [row, row | {"method": "vispruner"}]}))
    (found,) = read_bench(path).rows
    assert (found.method, found.job) == ("coverage", job_of(SHAPE, "coverage", 288, 2))


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
    assert 1e-4 < min(device.efficiency.values()) <= max(device.efficiency.values()) < 100
    assert 1e2 < device.launches_per_s < 1e8


def test_what_was_measured_of_blocks_is_how_long_blocks_take():
    """Each measured thing is predicted by the shares fitted to all of them."""
    true = DeviceSpec("made-up", "cpu", {"float32": 1e11}, 1e10, 1e5, ALL | {"encoder": 0.7, "attention": 0.2, "weights": 0.4})
    seen = []
    for rows in (1, 64, 640):
        for products, attention in (("encoder", "attention"), ("encoder", "maps"), ("prefill", "causal")):
            amounts = {products: 2e7 * rows, attention: 1e4 * rows**2, "weights": 4e7, "launches": 36}
            terms = [Term("", "", share, amount) for share, amount in amounts.items()]
            seen.append((terms, sum(seconds for _, seconds in true.seconds(terms, "float32"))))
    start = replace(true, efficiency=dict.fromkeys(ALL, 0.5))
    found = fit(start, "float32", seen)
    for terms, seconds in seen:
        assert sum(each for _, each in found.seconds(terms, "float32")) == pytest.approx(seconds, rel=0.01)
    assert found.efficiency["weights"] == pytest.approx(0.4, rel=0.05)
    assert found.efficiency["encoder"] == pytest.approx(0.7, rel=0.05)
    assert found.efficiency["memory"] == 0.5  # nothing tells


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


def test_compiled_rows_are_learned_and_predicted_by_the_others(tmp_path):
    """A device on which compiling takes the encoder to 0.8, the prefill to 0.9 and a step to 0.5 of their times."""
    path = bench_of(spec(2, 30, 1e5, "cpu"), tmp_path / "b.json", batches=[1], device="cpu")
    told = json.loads(path.read_text())
    for row in told["rows"]:
        if row["method"] == "cls":
            stages = {name: spread["median"] for name, spread in row["stages_s"].items()}
            plain = sum(stages.values())
            encoder = plain - 0.2 * (stages["encoder"] + stages["projector"])
            first = {"plain": plain, "encoder": encoder, "all": encoder - 0.1 * stages["prefill"]}
            step = {"plain": 1 / row["decode_tokens_per_s"]["median"], "encoder": 1.0}
            step["all"] = step["plain"] / 2
            kinds = {"time_to_first_token_s": first, "step_s": step}
            row["compiled"] = {kind: {way: {"median": x} for way, x in ways.items()} for kind, ways in kinds.items()}
        else:
            row["compiled"] = {"refused": "no"}
    path.write_text(json.dumps(told))
    bench = read_bench(path)
    device = calibrate(spec(2, 30, 1e5, "cpu"), bench)
    assert device.compiled == pytest.approx({"encoder": 0.8, "prefill": 0.9, "step": 0.5})
    checks = check(spec(2, 30, 1e5, "cpu"), bench)
    errors = {each.row.method: each.compiled_error for each in checks}
    assert errors == {"cls": pytest.approx(0, abs=1e-3), "none": None, "fastv": None, "eager-maps": None}
    told = predict(device, SHAPE.config, bench.rows[1].job, "float16")
    measured = (bench.rows[1].compiled or {})["time_to_first_token_s"]["all"]
    assert told.compiled == pytest.approx((measured, told.step / 2), rel=1e-3)
    headers, rows = check_table(checks)
    assert {len(row) for row in rows} == {len(headers)}
    assert "% compiled" in worst(checks)
    headers, rows = plan_table(plan(SHAPE, device, "float16", ["cls", "fastv"], [58], [1]))
    assert {len(row) for row in rows} == {len(headers)}
    assert [row[-1] == "–" for row in rows] == [True, False, True]
