"""The handle of a pruned model: what it changes, what it puts back, copies, other models, threads."""

import contextlib
import copy
import itertools
import pickle
import threading

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import fastervlm
from fastervlm import Mass, UserError
from tests.support import plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.plain import PROMPTS, Plain

N = tiny.PATCHES
ONE = PROMPTS["one"]


def test_remove_undoes_exactly(model):
    before, state, config = dict(vars(model)), copy.deepcopy(model.state_dict()), model.config.to_dict()
    parts = {name: dict(vars(module)) for name, module in model.named_modules() if name}
    handle = fastervlm.prune(model, 5)
    assert "active" in repr(handle)
    batch = plain.inputs(ONE)
    model.generate(**batch, max_new_tokens=2)
    model(**batch)
    assert {name: dict(vars(module)) for name, module in model.named_modules() if name} == parts
    handle.remove()
    assert dict(vars(model)) == before
    handle.remove()
    assert dict(vars(model)) == before
    assert "removed" in repr(handle)
    assert model.config.to_dict() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again = fastervlm.prune(model, 3)
    handle.remove()  # an old handle leaves the new one alone
    assert "active" in repr(again)
    again.remove()
    assert dict(vars(model)) == before


def test_classes_and_modules_of_the_library_are_untouched(model):
    before = {name: getattr(LlavaForConditionalGeneration, name) for name in ("generate", "forward", "__call__")}
    with fastervlm.prune(model, 5):
        assert {name: getattr(LlavaForConditionalGeneration, name) for name in before} == before
        assert type(model) is LlavaForConditionalGeneration


def test_own_methods_of_the_instance_come_back(model):
    """A forward that someone else put on the instance is called, and is there again afterwards."""
    stock, calls = model.forward, []

    def counted(*args, **kwargs):
        calls.append(len(kwargs))
        return stock(*args, **kwargs)

    model.forward = counted
    with fastervlm.prune(model, 5):
        model(**plain.inputs(ONE))
        assert len(calls) == 1
    assert model.forward is counted


def test_the_context_ends_even_by_an_exception(model):
    before = dict(vars(model))
    for early in (False, True):
        with contextlib.suppress(ZeroDivisionError), fastervlm.prune(model, 5) as handle:
            model(**plain.inputs(ONE))
            assert dict(vars(model)) != before
            if early:
                handle.remove()
            _ = 1 / 0
        assert dict(vars(model)) == before


@torch.no_grad()
def test_two_models_in_one_process(model):
    other, batch = tiny.llava(seed=1), plain.inputs(PROMPTS["ragged"])
    stock, mine = other(**batch).logits, Plain(model, 5).logits(*next(plain.rows(batch)))
    with fastervlm.prune(model, 5):
        assert torch.equal(other(**batch).logits, stock)
        with fastervlm.prune(other, 2):
            close(model(**batch).logits[0, -len(mine) :], mine)
            assert other(**batch).logits.shape[1] < stock.shape[1] - (N - 3)
        assert torch.equal(other(**batch).logits, stock)


def test_pruning_twice_is_refused_and_leaves_the_first(model):
    with fastervlm.prune(model, 5) as handle:
        with pytest.raises(UserError, match=r"pruned already; call handle\.remove\(\) before pruning it anew\."):
            fastervlm.prune(model, 3)
        model(**plain.inputs(ONE))
        assert len(handle.trace[0].index) == 5


@torch.no_grad()
def test_a_deep_copy_is_a_model_of_its_own(model):
    batch = plain.inputs(PROMPTS["ragged pictures"])
    stock, handle = model(**batch).logits, fastervlm.prune(model, 5)
    mine = model(**batch).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch).logits, mine)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    other = twin(**batch).logits
    assert not torch.equal(other, mine)
    assert torch.equal(model(**batch).logits, mine)
    handle.trace.clear()
    twin(**batch)
    assert handle.trace == []
    handle.remove()
    assert torch.equal(model(**batch).logits, stock)
    assert torch.equal(twin(**batch).logits, other)
    assert twin.generate(**batch, max_new_tokens=1).shape == model.generate(**batch, max_new_tokens=1).shape
    del model, handle
    assert torch.equal(twin(**batch).logits, other)


@pytest.mark.parametrize("method", ["cls", fastervlm.FastV(layer=1)], ids=str)
def test_a_pickle_of_a_pruned_model_is_refused(model, method, tmp_path):
    """It would come back unpruned, or half so."""
    handle = fastervlm.prune(model, 5, method=method)
    for save in (pickle.dumps, lambda x: torch.save(x, tmp_path / "model.pt"), lambda x: pickle.dumps(handle)):
        with pytest.raises(UserError, match="cannot be pickled") as caught:
            save(model)
        one_sentence(caught.value)
    handle.remove()
    again = pickle.loads(pickle.dumps(model))
    batch = plain.inputs(PROMPTS["one"])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_saved_while_pruned_it_is_the_stock_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "before")
    names = list(model.state_dict())
    with fastervlm.prune(model, 5):
        assert list(model.state_dict()) == names
        model(**plain.inputs(ONE))
        model.save_pretrained(tmp_path / "pruned")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "pruned" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    loaded, batch = LlavaForConditionalGeneration.from_pretrained(tmp_path / "pruned").eval(), plain.inputs(ONE)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("what", ["forward", "generate"])
def test_eight_threads_at_once(model, what):
    batches = [plain.inputs(texts, seed=i) for i, texts in enumerate([*PROMPTS.values(), ONE])]

    def run(batch):
        with torch.no_grad():
            return model(**batch).logits if what == "forward" else model.generate(**batch, max_new_tokens=4, do_sample=False)

    budgets = [{"keep": keep} for keep in (1, 3, 0.5, 16, Mass(0.7), None)]  # and five, where the call brings none
    batches = [batch | budget for batch, budget in zip(batches, itertools.cycle(budgets), strict=False)]
    with fastervlm.prune(model, 5):
        alone, found = [run(batch) for batch in batches], {}
        start = threading.Barrier(len(batches))

        def work(i):
            start.wait()
            found[i] = [run(batches[i]) for _ in range(5)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == len(batches)
    for i, expected in enumerate(alone):
        assert all(torch.equal(x, expected) for x in found[i])
