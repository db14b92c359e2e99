"""Rates that are fitted to benchmarks of made-up devices, whose times follow the formulas."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from encoders import UserError
from fastervlm.bench.calibrate import calibrate, check, read_bench
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import SPECS, known
from fastervlm.bench.fit import fit
from fastervlm.bench.plan import job_of, plan, predict
from fastervlm.bench.plan_table import check_table, plan_table, worst
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.terms import Term
from fastervlm.reporting.provenance import machine
from tests.support.benches import ALL, PRODUCTS, SHAPE, bench_of, spec


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


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(tmp_path, model, name):
    bench = read_bench(bench_of(spec(1, 1), tmp_path / "b.json", device=f"cuda ({model})"))
    assert known(model) == name
    for each in SPECS.values():
        if each.name == name:
            calibrate(each, bench)
        else:
            with pytest.raises(UserError, match=f"which is not like {each.name}; choose another"):
                calibrate(each, bench)


@pytest.mark.parametrize("change", [{"encoder": {"median": 0}}, {"splice": None}, {"prefill": {"median": "x"}}])
def test_a_file_with_holes_is_refused(tmp_path, change):
    path = bench_of(spec(300, 2000), tmp_path / "b.json")
    told = json.loads(path.read_text())
    told["rows"][1]["stages_s"].update(change)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="holds no benchmark of a shape"):
        read_bench(path)


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


def test_steps_that_nobody_measured_compiled_are_not_predicted(tmp_path):
    path = bench_of(spec(2, 30, 1e5, "cpu"), tmp_path / "b.json", batches=[1], device="cpu")
    told = json.loads(path.read_text())
    cls = next(row for row in told["rows"] if row["method"] == "cls")
    first = cls["time_to_first_token_s"]["median"]
    cls["compiled"] = {"time_to_first_token_s": {way: {"median": first} for way in ("plain", "encoder", "all")}}
    path.write_text(json.dumps(told))
    device = calibrate(spec(2, 30, 1e5, "cpu"), read_bench(path))
    assert device.compiled.keys() == {"encoder", "prefill"}
    _, rows = plan_table(plan(SHAPE, device, "float16", ["cls"], [58], [1]))
    assert rows[1][-1] == "–" != rows[1][-2]


@pytest.mark.parametrize("change", [{"method": "eager-maps", "job": None}, {"method": "cls", "job": None}])
def test_rows_of_a_tower_without_a_formula_are_left_out(tmp_path, change):
    """Nobody can say what the whole attention maps of InternVL's tower cost."""
    path = bench_of(spec(300, 2000), tmp_path / "b.json", batches=[1], shape="internvl3-8b", parts=1)
    told = json.loads(path.read_text())
    whole = told["rows"][0] | {"job": asdict(job_of(get_shape("internvl3-8b"), "none", 256, 1))}
    path.write_text(json.dumps(told | {"rows": [whole, whole | change | {"visual_token_num": 26, "prompt_tokens": 90}]}))
    bench = read_bench(path)
    assert [row.method for row in bench.rows] == ["none"]
    calibrate(spec(300, 2000), bench)
