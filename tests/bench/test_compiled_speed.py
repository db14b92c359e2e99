"""Compiled calls beside uncompiled ones, with backends of torch that compile nothing."""

import pytest

import fastervlm
from encoders import UserError
from fastervlm.bench import speed as room
from fastervlm.bench.compiled import compiled, compiled_or_why_not, encoder_compiled
from fastervlm.bench.speed import speed
from fastervlm.bench.variants import Variant, pruners_of, variants

WAYS = ["plain", "encoder", "all"]


def variant(method, kept=4):
    return Variant(method, kept, 1, pruners_of([method], 2).get(method))


def test_encoder_and_language_model_run_by_graphs_where_they_should(workloads):
    """Graphs are told by how often they run: the encoder's in two of three calls, those of the language model in one."""
    runs = []

    def backend(graph, _):
        number = len(runs)
        runs.append(0)

        def run(*args):
            runs[number] += 1
            return graph.forward(*args)

        return run

    told = compiled(workloads["tiny"], variant("cls"), repeats=2, new_tokens=3, backend=backend)
    assert sorted(runs) == [3, 6, 6]  # prefill: a call a round; steps: two of them; encoder: two calls a round
    for kind in ("time_to_first_token_s", "step_s"):
        assert list(told[kind]) == WAYS
        assert {len(each["values"]) for each in told[kind].values()} == {2}
        assert min(each["median"] for each in told[kind].values()) > 0
        assert told[kind]["plain"]["ratio"] == 1
    assert told["compiling_s"] > 0
    assert "forward" not in vars(workloads["tiny"].model.model.language_model)
    assert "step_s" not in compiled(workloads["tiny"], variant("cls"), repeats=1, new_tokens=1, backend="eager")


def test_in_front_of_fastv_the_encoder_alone_runs_by_a_graph(workloads):
    runs = []

    def backend(graph, _):
        return lambda *args: runs.append(0) or graph.forward(*args)

    model = workloads["tiny"].model
    told = encoder_compiled(workloads["tiny"], variant("fastv"), repeats=2, new_tokens=2, backend=backend)
    assert len(runs) == 3  # of six calls
    for kind in ("time_to_first_token_s", "step_s"):
        assert {way: len(each["values"]) for way, each in told[kind].items()} == {"plain": 2, "encoder": 2}
    assert told["compiling_s"] > 0
    with fastervlm.prune(model, 4):  # a model that is still pruned refuses it
        pass
    with pytest.raises(UserError, match="pictures in crops"):
        encoder_compiled(workloads["tiny-next"], variant("fastv"), repeats=1)


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        ("tiny", "fastv", "fastv does not prune in front of the language model"),
        ("tiny", "none", "none does not prune in front"),
        ("tiny-next", "cls", "pictures in crops"),
    ],
)
def test_what_cannot_be_compiled_is_told(workloads, name, method, reason):
    with pytest.raises(UserError, match=reason):
        compiled(workloads[name], variant(method), repeats=1)
    assert reason in compiled_or_why_not(workloads[name], variant(method), 1)["refused"]


def test_a_compiler_that_fails_loses_nothing_else(workloads):
    def broken(graph, _):
        raise RuntimeError("no compiler here")

    told = compiled_or_why_not(workloads["tiny"], variant("cls"), 1, backend=broken)
    assert "no compiler here" in told["refused"]
    assert "forward" not in vars(workloads["tiny"].model.model.language_model)


def test_a_benchmark_tells_of_compiled_rows(workloads, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "compiled_or_why_not", lambda *args: compiled_or_why_not(*args, backend="eager"))
    result = speed(workloads["tiny"], variants(workloads["tiny"], ["cls"], [4], [1]), repeats=1, new_tokens=2, compiling=True)
    none, cls = result.summary()["rows"]
    assert "refused" in none["compiled"]
    assert list(cls["compiled"]["time_to_first_token_s"]) == WAYS
    headers, rows = result.tables()["compiled"]
    assert [row[:3] for row in rows] == [["cls", "4", "1"]]
    assert {len(row) for row in rows} == {len(headers)}
    result.write(tmp_path / "bench.json")
    assert "## compiled" in (tmp_path / "bench.md").read_text()
