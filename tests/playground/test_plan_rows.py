import json
import sys

from playground import plan_rows


def test_rows_are_as_near_as_the_file_says(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["plan_rows", "--bench", "bench-qwen2.5-vl", "--out", str(out)])
    plan_rows.main()
    found = json.loads(out.read_text())["benchmarks"]["bench-qwen2.5-vl"]
    kept = json.loads((plan_rows.RESULTS / "plan-rows.json").read_text())["benchmarks"]
    assert [row["visual_token_num"] for row in found["rows"]] == [391, 98, 39, 20]
    for row, told in zip(found["rows"], kept["bench-qwen2.5-vl"]["rows"], strict=True):
        assert abs(row["error"] - told["error"]) < 1e-3
        assert abs(row["error"]) < 0.1
        assert list(row["bound"]) == ["tower"]
    rows = [row for bench in kept.values() for row in bench["rows"]]
    assert sum(abs(row["error"]) < 0.07 for row in rows) == len(rows) - 1
