"""What `handle.compile` makes graphs of: weights as constants that may change, and a language model over static caches."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch._inductor import config

import fastervlm
from fastervlm.generation import packing
from fastervlm.generation.compiled import Graphs, weights_as_constants
from tests.support import plain, tiny
from tests.support.generation_modes import GREEDY


class Constants:
    """A backend that counts its graphs, and whose graphs keep the weights that they were made with."""

    def __init__(self) -> None:
        self.count = 0
        self.freezing: set[bool] = set()

    def __call__(self, graph, example_inputs):
        self.count += 1
        self.freezing.add(config.freezing)
        return copy.deepcopy(graph).forward

    def __deepcopy__(self, memo):
        return self


@pytest.fixture(autouse=True)
def graphs():
    torch._dynamo.reset()
    return Constants()


def prune(model, **settings) -> Any:
    return fastervlm.prune(model, 5, **settings)


def asked(words: int, seed: int = 0) -> dict[str, Any]:
    """A picture, and some words behind it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[1, 50, *[plain.IMAGE_ID] * tiny.PATCHES, *range(60, 60 + words)]])
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, tiny.IMAGE, tiny.IMAGE, generator=generator)}


@torch.no_grad()
def test_weights_are_constants_that_are_made_anew_when_they_change(graphs):
    model = tiny.llava()
    with prune(model) as handle:
        handle.compile(backend=graphs)
        for made in (1, 2):
            for seed in (0, 1):
                compiled = model(**asked(3, seed)).logits
                encode, handle.host.encode = handle.host.encode, handle.host.family.encode
                assert torch.equal(compiled, model(**asked(3, seed)).logits)
                handle.host.encode = encode
            assert graphs.count == made
            for parameter in model.model.vision_tower.parameters():
                parameter.mul_(1.5)
    assert (graphs.freezing, config.freezing) == ({True}, False)


def test_graphs_of_old_weights_are_let_go_however_often_they_change():
    """As after each epoch of a training, whose own graph stays."""
    made, layer, rows = [], torch.nn.Linear(4, 4), torch.randn(2, 4)

    def backend(graph, _):
        own = copy.deepcopy(graph)
        made.append(weakref.ref(own))
        return own.forward

    graphs: Graphs | None = Graphs(layer.forward, layer, fullgraph=True, backend=backend)
    for epoch in range(1, torch._dynamo.config.recompile_limit + 4):
        assert graphs is not None
        graphs(rows).sum().backward()
        with torch.no_grad():
            layer.weight.mul_(1.5)
            for _ in range(2):
                assert torch.equal(graphs(rows), layer(rows))
        gc.collect()
        assert len(made) == 1 + epoch
        assert [each() is not None for each in made] == [True, *[False] * (epoch - 1), True]
    graphs = None
    gc.collect()
    assert not any(each() for each in made)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@torch.no_grad()
def test_packed_copies_of_old_weights_are_let_go(monkeypatch):
    held: list[weakref.ref[Any]] = []

    def packing_pass():
        def followed(graph):
            packing.PackByOneDNN()(graph)
            constants = [getattr(graph.owning_module, node.target) for node in graph.nodes if node.op == "get_attr"]
            held.extend(weakref.ref(each) for each in constants if each.is_mkldnn)

        return followed

    monkeypatch.setattr(packing, "packing_pass", packing_pass)
    layer = torch.nn.Linear(24, 16)
    graphs = Graphs(layer.forward, layer, fullgraph=True)
    for size in (5, 3, 5):
        rows = torch.randn(size, 24)
        torch.testing.assert_close(graphs(rows), layer(rows))
    assert [each() is not None for each in held] == [True, True]  # one for each number of rows
    layer.weight.mul_(2)
    torch.testing.assert_close(graphs(rows), layer(rows))
    gc.collect()
    assert [each() is not None for each in held] == [False, False, True]


@torch.no_grad()
def test_a_copy_takes_no_graphs_away(graphs):
    layer, rows = torch.nn.Linear(4, 4), torch.randn(2, 4)
    compiled: Graphs | None = Graphs(torch.nn.Linear.forward, layer, fullgraph=True, backend=graphs)
    compiled(layer, rows)
    twin = copy.deepcopy(compiled)
    assert torch.equal(compiled(layer, rows), twin(twin.module, rows))
    compiled = None
    gc.collect()
    twin(twin.module, rows)
    assert graphs.count == 2


def test_weights_that_are_learned_are_no_constants(graphs):
    model = tiny.llava()
    with prune(model) as handle:
        handle.compile(backend=lambda graph, _: graphs.freezing.add(config.freezing) or graph.forward)
        model(**asked(3)).logits.sum().backward()
    assert graphs.freezing == {False}
    assert all(parameter.grad is not None for parameter in model.model.multi_modal_projector.parameters())


def test_a_compiled_language_model_answers_as_it_does_uncompiled_at_any_length(graphs):
    """One graph in front, one for the first length of a prompt, one for all others, one for a step."""
    model, calls = tiny.llava(), [asked(words, words) for words in (3, 9, 5, 12, 3, 7)]
    with prune(model) as handle:
        expected = [model.generate(**call, **GREEDY) for call in calls]
        assert handle.compile(backend=graphs, language_model=True) == 0
        for call, answer in zip(calls, expected, strict=True):
            assert torch.equal(model.generate(**call, **GREEDY), answer)
        made = graphs.count
        assert made <= 4
        for call, answer in zip(calls, expected, strict=True):
            assert torch.equal(
                model.generate(**call, **GREEDY | {"max_new_tokens": 3}), answer[:, : call["input_ids"].shape[1] + 3]
            )
        assert graphs.count == made
    assert "forward" not in vars(model.model.language_model)


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"return_dict_in_generate": True}, {"use_cache": False}], ids=str)
def test_calls_that_need_a_cache_of_their_own_run_as_without(graphs, more):
    model, call = tiny.llava(), asked(4)
    with prune(model) as handle:
        expected = model.generate(**call, **GREEDY | more)
        handle.compile(backend=graphs, language_model=True)
        found = model.generate(**call, **GREEDY | more)
        assert graphs.count == 1  # the picture's
    tokens = [getattr(output, "sequences", output) for output in (found, expected)]
    assert torch.equal(*tokens)


def test_what_compiling_took_is_told_and_shapes_can_be_compiled_ahead(graphs):
    model = tiny.llava()
    with prune(model) as handle:
        took = handle.compile(backend=graphs, language_model=True, warm=[asked(3)])
        made = graphs.count
        assert took == handle.compile_seconds > 0
        model.generate(**asked(3, 1), **GREEDY)
        assert (graphs.count, handle.compile_seconds) == (made, took)


@torch.no_grad()
def test_a_copy_of_a_model_with_a_compiled_language_model_computes_with_its_own_weights(graphs):
    model = tiny.llava()
    handle = prune(model)
    handle.compile(backend=graphs, language_model=True)
    model.generate(**asked(3), **GREEDY)
    twin = copy.deepcopy(model)
    for parameter in twin.model.language_model.parameters():
        parameter.mul_(-1.0)
    compiled = twin.generate(**asked(3), **GREEDY)
    plain_twin = copy.deepcopy(twin)
    plain_twin.__dict__["_fastervlm_host"].language = None
    assert torch.equal(compiled, plain_twin.generate(**asked(3), **GREEDY))
    assert not torch.equal(compiled, model.generate(**asked(3), **GREEDY))


def test_a_language_model_whose_forward_was_replaced_is_refused_and_methods_inside_it_run_uncompiled(graphs):
    model, call = tiny.llava(), asked(4)
    with prune(model) as handle, fastervlm.prune(model, 3, method=fastervlm.FastV(1)):
        expected = model.generate(**call, **GREEDY)
        handle.compile(backend=graphs, language_model=True)
        assert torch.equal(model.generate(**call, **GREEDY), expected)
    assert graphs.count == 1
    decoder = model.model.language_model
    decoder.forward = decoder.forward
    with prune(model) as handle, pytest.raises(fastervlm.UserError, match="was replaced"):
        handle.compile(language_model=True)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
@pytest.mark.parametrize(("intel", "product"), [(False, "mkldnn::_linear_pointwise"), (True, "mkl::_mkl_linear")])
@torch.no_grad()
def test_float32_weights_are_packed_by_mkl_for_processors_by_intel_alone(monkeypatch, intel, product):
    monkeypatch.setattr(packing, "by_intel", lambda: intel)
    packing.packing_pass.cache_clear()
    torch.manual_seed(0)
    first, second = torch.nn.Linear(24, 24, bias=False), torch.nn.Linear(24, 16)

    def function(rows):
        return second(torch.nn.functional.silu(first(first(rows)) + rows)), second(rows[:3])

    graphs, rows = Graphs(function, second, fullgraph=True), torch.randn(5, 24)
    found = graphs(rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        graphs(rows)
    packing.packing_pass.cache_clear()
    products = {each.key: each.count for each in profiler.key_averages() if "linear" in each.key or "mm" in each.key}
    assert (products, config.post_grad_custom_pre_pass) == ({product: 4}, None)
    torch.testing.assert_close(found, function(rows))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
def test_weights_of_mkl_that_nothing_reads_any_more_are_let_go():
    """Of two products that share a weight, one keeps other rows, and so another packing."""
    weight, bias, rows = torch.randn(16, 24), torch.randn(16), torch.randn(5, 24)
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    for name, tensor in {"weight": weight, "bias": bias}.items():
        module.register_buffer(name, tensor)
    graph = module.graph
    given, found = graph.placeholder("rows"), []
    for count in (5, 5, 3):
        module.register_buffer(f"mkl_{count}", torch.ops.mkl._mkl_reorder_linear_weight(weight, count))
        some = graph.call_function(torch.narrow, (given, 0, 0, count))
        constants = [graph.get_attr(name) for name in (f"mkl_{count}", "weight", "bias")]
        found.append(graph.call_function(torch.ops.mkl._mkl_linear, (some, *constants, count)))
    graph.output(tuple(found))
    packing.PackByOneDNN()(graph)
    module.recompile()
    whole = torch.nn.functional.linear(rows, weight, bias)
    torch.testing.assert_close(module(rows), (whole, whole, whole[:3]))
    assert {*dict(module.named_buffers())} == {"bias", "weight_of_5_rows", "weight_of_3_rows"}


def test_a_pass_of_the_user_stays_and_settings_come_back():
    def own(graph):
        pass

    with config.patch(post_grad_custom_pre_pass=own, freezing=False):
        with weights_as_constants(), weights_as_constants():
            assert (config.freezing, config.post_grad_custom_pre_pass) == (True, own)
        assert (config.freezing, config.post_grad_custom_pre_pass) == (False, own)


@pytest.mark.slow
@torch.no_grad()
def test_inductor_packs_the_weights_and_answers_alike():
    """Kept sets and answers are those uncompiled, features within rounding; changed weights too."""
    model, calls = tiny.llava(), [asked(words, words) for words in (3, 8)]
    with prune(model) as handle:
        for _ in range(2):
            handle.host.encode = handle.host.family.encode
            answers = [model.generate(**call, **GREEDY) for call in calls]
            features = [model(**call).logits for call in calls]
            kept = [trace.index.tolist() for trace in handle.trace]
            took = handle.compile(language_model=True, warm=calls[:1])
            assert took > 0
            for call, answer, expected in zip(calls, answers, features, strict=True):
                assert torch.equal(model.generate(**call, **GREEDY), answer)
                torch.testing.assert_close(model(**call).logits, expected, atol=1e-4, rtol=1e-4)
            assert [trace.index.tolist() for trace in handle.trace] == kept
            for parameter in model.model.vision_tower.parameters():
                parameter.mul_(1.1)
