"""Decoding under torch.compile: one graph for all steps, as many as the stock model needs, with the same answers."""

import contextlib

import pytest
import torch
from transformers import CompileConfig, StaticCache

import fastervlm
from tests.support.generation_modes import GREEDY
from tests.support.model_kinds import KINDS

STEPS = GREEDY | {"max_new_tokens": 8, "min_new_tokens": 8}
kinds = pytest.mark.parametrize("kind", KINDS)


class Graphs:
    """A backend that counts the graphs it is given and runs them as they are; transformers copies its configs, not this."""

    count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward

    def __deepcopy__(self, memo):
        return self


@pytest.fixture(autouse=True)
def graphs():
    torch._dynamo.reset()
    return Graphs()


def static(graphs, **more):
    """Arguments by which `generate` compiles its steps, on a CPU too; whatever breaks the graph raises."""
    config = CompileConfig(fullgraph=True, backend=graphs, mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True  # type: ignore[assignment]
    return STEPS | {"cache_implementation": "static", "compile_config": config} | more


@kinds
@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"prefill_chunk_size": 16}], ids=str)
def test_all_steps_are_one_graph(kind, more, graphs):
    tested = KINDS[kind]
    batch = tested.inputs(tested.ragged)
    stock = Graphs()
    for _ in range(2):
        tested.model().generate(**batch, **static(stock, **more))
    model = tested.model()
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **STEPS, **more)
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **static(graphs, **more)), expected)
    assert graphs.count <= stock.count


@kinds
def test_a_step_is_not_compiled_anew_at_each_length(kind, graphs):
    tested = KINDS[kind]
    model = tested.model()
    with fastervlm.prune(model, 5):
        model.generate(**tested.inputs(tested.one), **static(graphs, min_new_tokens=30, max_new_tokens=30))
    assert graphs.count == 1


@kinds
def test_what_was_compiled_before_pruning_is_pruned_and_what_was_compiled_under_it_is_not_afterwards(kind, graphs):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    stock = model.generate(**batch, **STEPS)
    assert torch.equal(model.generate(**batch, **static(graphs)), stock)
    with fastervlm.prune(model, 5):
        pruned = model.generate(**batch, **STEPS)
        assert torch.equal(model.generate(**batch, **static(graphs)), pruned)
    assert torch.equal(model.generate(**batch, **static(graphs)), stock)


@kinds
@torch.no_grad()
def test_a_compiled_forward_is_one_graph_for_decoding_and_right_with_pictures(kind, graphs):
    tested = KINDS[kind]
    model, batch, ids = tested.model(), tested.inputs(tested.one), torch.tensor([[5, 6, 7, 8, 9]])
    whole, stock = model(ids).logits, Graphs()
    with fastervlm.prune(model, 5):
        expected = model(**batch).logits
        torch.testing.assert_close(torch.compile(model.forward, backend=Graphs())(**batch).logits, expected)
    for counted, context in ((stock, contextlib.nullcontext()), (graphs, fastervlm.prune(model, 5))):
        torch._dynamo.reset()
        with context:
            step = torch.compile(model.forward, backend=counted, fullgraph=True)
            cache = StaticCache(model.config, max_cache_len=16)
            found = [step(ids[:, i : i + 1], cache=cache, position_ids=torch.tensor([[i]])).logits for i in range(5)]
        torch.testing.assert_close(torch.cat(found, dim=1), whole)
    assert graphs.count == stock.count
