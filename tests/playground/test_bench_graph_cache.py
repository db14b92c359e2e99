"""What the second process saves: that a pair is measured, and that medians are written."""

import json
import sys

import pytest
import torch

from playground import bench_graph_cache


def test_medians_of_all_pairs_are_written(tmp_path, monkeypatch):
    out, threads, numbers = tmp_path / "cache.json", torch.get_num_threads(), iter([3.0, 1.0, 2.0])

    def pair(options):
        assert options == ["--shape", "tiny", "--blocks", "2"]
        first = next(numbers)
        return [{"compile_seconds": 10 * each, "processor_seconds": each} for each in (first, first / 2)]

    monkeypatch.setattr(bench_graph_cache, "pair", pair)
    monkeypatch.setattr(sys, "argv", ["bench", "--shape", "tiny", "--blocks", "2", "--out", str(out)])
    bench_graph_cache.main()
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())["compiling"]
    assert [found[name]["compile_seconds"]["median"] for name in ("first process", "second process")] == [20, 10]


@pytest.mark.slow
def test_both_processes_of_a_pair_compile():
    told = bench_graph_cache.pair(["--shape", "tiny", "--blocks", "2"])
    assert all(min(each.values()) > 0 for each in told)
    assert len(told) == 2
