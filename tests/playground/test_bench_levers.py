"""The levers that are measured: each of them gives the same in all of its ways, and the command writes what it measured."""

import json
import sys

import pytest
import torch

from playground import bench_levers


def both(name: str) -> list[torch.Tensor]:
    """What each way of a lever gives, as one tensor."""
    torch.manual_seed(0)
    found = [call() for call in bench_levers.LEVERS[name](torch.float32).values()]
    return [each if isinstance(each, torch.Tensor) else torch.cat(each) for each in found]


@pytest.mark.parametrize("name", ["mask behind FastV's cut", "preprocessing of 20 pictures"])
@torch.no_grad()
def test_all_ways_give_the_same(name, monkeypatch):
    monkeypatch.setattr(bench_levers, "PICTURES", 2)
    threads = torch.get_num_threads()
    first, *others = both(name)
    torch.set_num_threads(threads)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch):
    out, threads = tmp_path / "levers.json", torch.get_num_threads()
    levers = {name: lambda dtype: {"one": lambda: 1, "two": lambda: 2} for name in ("some", "preprocessing of 20 pictures")}
    monkeypatch.setattr(bench_levers, "LEVERS", levers)
    monkeypatch.setattr(sys, "argv", ["bench_levers", "--repeats", "3", "--out", str(out)])
    bench_levers.main()
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert found["by_the_wall"] == ["preprocessing of 20 pictures"]
    assert all([*ways] == ["one", "two"] for levers in found["levers"].values() for ways in levers.values())
