"""Handles of in-LLM pruning: stacked, removed in any order, copied, refused."""

import copy
import itertools
import threading

import pytest
import torch
from transformers import GemmaConfig, LlavaConfig, LlavaForConditionalGeneration

import fastervlm
from fastervlm import FastV, InLLM, Simignore, UserError, UserTypeError
from fastervlm.generation.kv_cache import CACHE
from fastervlm.methods.lookup import get_method
from tests.support import inllm_prompts, plain, tiny, tiny_decoders
from tests.support.checks import close, one_sentence
from tests.support.plain_decoder import PlainDecoder, Stage, by_walk

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def model():
    return tiny_decoders.llava()


@pytest.fixture
def inputs():
    return inllm_prompts.batch("ragged pictures")


def insides(model):
    """All that could have been changed: attributes of every module by identity, and the hooks in them."""
    return {
        name: {key: dict(value) if "hooks" in key and isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


METHODS = [FastV(2), FastV(1, "mask"), FastV(0), Simignore(), Simignore("drop")]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_removing_undoes_it_exactly(model, inputs, method):
    whole = logits(model, inputs)  # transformers puts hooks of its own on at the first call
    before, state = insides(model), list(model.state_dict())
    handle = fastervlm.prune(model, keep=3, method=method)
    assert handle.active
    assert repr(handle) == f"InLLMHandle(LlavaForConditionalGeneration, keep=3, {method!r}, active)"
    assert list(model.state_dict()) == state
    assert not torch.equal(logits(model, inputs), whole)
    with pytest.raises(RuntimeError, match="mine"), handle:
        raise RuntimeError("mine")
    assert not handle.active
    handle.remove()
    assert insides(model) == before
    assert torch.equal(logits(model, inputs), whole)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_names_and_settings(model, inputs):
    short = logits_under(model, inputs, FastV(2))
    assert torch.equal(logits_under(model, inputs, "fastv"), short)
    assert torch.equal(logits_under(model, inputs, get_method("fastv", layer=2)), short)
    assert torch.equal(logits_under(model, inputs, "simignore"), logits_under(model, inputs, Simignore()))
    assert get_method("fastv", layer=3) == FastV(3)


def logits_under(model, inputs, method, keep: int | float = 5):
    with fastervlm.prune(model, keep=keep, method=method):
        return logits(model, inputs)


@pytest.mark.parametrize("modes", list(itertools.product(("drop", "mask"), repeat=2)))
def test_two_layers(model, inputs, modes):
    """The second ranks what the first left, and counts of the whole prompt."""
    stages = Stage(1, 9, modes[0]), Stage(3, 0.25, modes[1])
    reference = PlainDecoder(model, *stages)
    expected = [reference.greedy(ids, pictures, 8) for ids, pictures in inllm_prompts.rows(inputs)]
    with (
        fastervlm.prune(model, keep=0.25, method=FastV(3, modes[1])) as late,
        fastervlm.prune(model, keep=9, method=FastV(1, modes[0])) as early,
    ):
        given = model.generate(**inputs, **GREEDY)
        last = logits(model, inputs)[:, -1]
        beams = model.generate(**inputs, **GREEDY, num_beams=2)
    assert given[:, inputs["input_ids"].shape[1] :].tolist() == expected
    for number, (ids, pictures) in enumerate(inllm_prompts.rows(inputs)):
        close(last[number], reference.last(ids, pictures))
    for first, second in zip(early.trace[::2], late.trace[::2], strict=True):
        assert set(second.index.tolist()) <= set(first.index.tolist())
        assert second.num_tokens == min(first.num_tokens, max(1, len(second.scores) // 4))
        gone = [i for i in range(len(first.scores)) if i not in first.index.tolist()]
        assert bool((second.scores[gone] == 0).all())
    assert beams.shape == given.shape


@pytest.mark.parametrize("modes", list(itertools.product(("drop", "mask"), repeat=2)))
def test_simignore_with_fastv_on_top(model, inputs, modes):
    """As the authors of Simignore ran it."""
    reference = PlainDecoder(model, Stage(0, 10, modes[0], by_walk(1, 1)), Stage(2, 4, modes[1]))
    expected = [reference.greedy(ids, pictures, 8) for ids, pictures in inllm_prompts.rows(inputs)]
    with (
        fastervlm.prune(model, keep=10, method=Simignore(modes[0])),
        fastervlm.prune(model, keep=4, method=FastV(2, modes[1])),
    ):
        assert model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("first", ["before", "inside"])
@pytest.mark.parametrize("removed", ["before", "inside"])
def test_on_top_of_a_pruned_prompt(model, inputs, first, removed, mode):
    """[CLS] to 9 a picture, then FastV to 4 of a prompt; put on and taken off in any order."""
    whole, length = logits(model, inputs), inputs["input_ids"].shape[1]
    untouched = insides(model)
    put = {
        "before": lambda: fastervlm.prune(model, keep=9),
        "inside": lambda: fastervlm.prune(model, keep=4, method=FastV(2, mode)),
    }
    order = [first, "inside" if first == "before" else "before"]
    handles = {name: put[name]() for name in order}
    given = model.generate(**inputs, **GREEDY)
    short = logits(model, inputs)[:, -1]
    reference, classed = PlainDecoder(twin_of(model), Stage(2, 4, mode)), plain.Plain(twin_of(model), 9)
    for number, (ids, pixels) in enumerate(plain.rows(inputs)):
        columns = classed.columns(ids, pixels)
        row = [ids[column] for column in columns]
        reference.embeds = embeds_of(reference, classed, pixels)  # type: ignore[method-assign]
        assert given[number, length:].tolist() == reference.greedy(row, {"some": 1}, 8)
        close(short[number], reference.last(row, {"some": 1}))
    handles[removed].remove()
    other = next(name for name in order if name != removed)
    left = logits(model, inputs)[:, -1]
    handles[other].remove()
    with put[other]():
        close(logits(model, inputs)[:, -1], left)
    assert insides(model) == untouched
    assert torch.equal(logits(model, inputs), whole)


def twin_of(model):
    """An unpruned model with the same weights."""
    twin = tiny_decoders.llava()
    twin.load_state_dict(model.state_dict())
    return twin


def embeds_of(reference, classed, pixels):
    def embeds(ids, pictures):
        text = reference.model.get_input_embeddings()(torch.tensor(ids)).clone()
        if pixels is not None:
            visual = classed.visual(pixels)
            text[[i for i, x in enumerate(ids) if x == 3][: len(visual)]] = visual
        return text

    return embeds


def test_continuing_under_both_kinds(model):
    """A second turn sees what both left of the first; whichever is removed, the cache is not misread."""
    inputs = inllm_prompts.batch("ragged")
    more = torch.tensor([[90, 91], [93, 94], [96, 97]])
    answers = []
    for mode in ("drop", "mask"):
        with fastervlm.prune(model, keep=9), fastervlm.prune(model, keep=4, method=FastV(2, mode)):
            first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            ids = torch.cat((first.sequences, more), dim=1)
            mask = torch.cat((inputs["attention_mask"], torch.ones(3, 10).long()), dim=1)
            again = {"input_ids": ids, "attention_mask": mask}
            twins = [copy.deepcopy(first[CACHE]) for _ in range(2)]
            answers.append(model.generate(**again, **{CACHE: first[CACHE]}, **GREEDY).tolist())
    assert answers[0] == answers[1]
    with fastervlm.prune(model, keep=9), pytest.raises(UserError, match="while it is pruned") as error:
        model.generate(**again, **{CACHE: twins[0]}, **GREEDY)
    one_sentence(error.value)
    with fastervlm.prune(model, keep=4, method=FastV(2)), pytest.raises(UserError, match="removed since") as error:
        model.generate(**again, **{CACHE: twins[1]}, **GREEDY)
    one_sentence(error.value)


def test_a_copy_is_pruned_on_its_own(model, inputs):
    whole = logits(model, inputs)
    with fastervlm.prune(model, keep=3, method=FastV(2)) as handle:
        short, twin = logits(model, inputs), copy.deepcopy(model)
        kept = handle.trace
        close(logits(twin, inputs), short)
        assert handle.trace is kept
    assert torch.equal(logits(model, inputs), whole)
    close(logits(twin, inputs), short)
    with fastervlm.prune(twin, keep=2, method=FastV(1)):
        assert not torch.allclose(logits(twin, inputs), short, atol=1e-4)
    own = twin.__dict__["_fastervlm_inllm"].handles[2]
    assert own is not handle
    assert own.model is twin
    own.remove()
    assert torch.equal(logits(twin, inputs), whole)


def test_threads_do_not_meet(model, inputs):
    rows = [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), **pictures}
        for ids, pictures in inllm_prompts.rows(inputs)
    ]
    with fastervlm.prune(model, keep=4, method=FastV(2)):
        expected, got = [model.generate(**row, **GREEDY).tolist() for row in rows], {}

        def work(number):
            got[number] = model.generate(**rows[number % 3], **GREEDY).tolist()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[number] for number in range(9)] == expected * 3


def test_positional_arguments_and_a_changed_backend(model, inputs):
    short = logits_under(model, inputs, FastV(2))
    with fastervlm.prune(model, keep=5, method=FastV(2)), torch.no_grad():
        given = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits
        states = model.model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).last_hidden_state
        model.set_attn_implementation("eager")
        close(logits(model, inputs), short)
        model.set_attn_implementation("flex_attention")
        with pytest.raises(UserError, match="cannot work with attn_implementation='flex_attention'") as error:
            logits(model, inputs)
        one_sentence(error.value)
    assert torch.equal(given, short)
    close(model.lm_head(states), short)


def test_selector_ids_in_generation(model, inputs):
    """They follow their rows through beams, and their pads do not count."""
    selector = torch.tensor([[50, 60, 70], [80, 0, 0], [90, 91, 0]])
    with fastervlm.prune(model, keep=4, method=Simignore("drop")) as handle:
        together = model.generate(**inputs, selector_ids=selector, **GREEDY, num_beams=2)
        kept = [trace.index.tolist() for trace in handle.trace[::2]]
        logits(model, inputs | {"selector_ids": selector})
        assert [trace.index.tolist() for trace in handle.trace] == kept
        for number, (ids, pictures) in enumerate(inllm_prompts.rows(inputs)):
            text = selector[number][selector[number] != 0][None]
            alone = model.generate(input_ids=torch.tensor([ids]), **pictures, selector_ids=text, **GREEDY, num_beams=2)
            assert alone[0, len(ids) :].tolist() == together[number, inputs["input_ids"].shape[1] :].tolist()
        model.generate(**inputs, **GREEDY)
        assert [trace.index.tolist() for trace in handle.trace] != kept
        for wrong in (selector[:2], selector[0]):
            with pytest.raises(UserError, match="selector_ids must have a row for each of the 3 prompts") as error:
                logits(model, inputs | {"selector_ids": wrong})
            one_sentence(error.value)
        with pytest.raises(UserError, match="finds no text behind the last picture") as error:
            logits(model, plain.inputs(["So <image>"]))
        one_sentence(error.value)
    with pytest.raises(ValueError, match="selector_ids"):
        model.generate(**inputs, selector_ids=selector, **GREEDY)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FastV(layer=-1), "layer=-1 cannot be used; give a whole number of at least 0."),
        (lambda: FastV(layer=1.5), "layer=1.5 cannot be used"),  # type: ignore[arg-type]
        (lambda: FastV(layer=True), "layer=True cannot be used"),
        (lambda: FastV(mode="hide"), "mode='hide' is not known; choose one of drop, mask."),  # type: ignore[arg-type]
        (lambda: FastV(random_seed=1 << 63), "random_seed=.* is too large"),
        (lambda: Simignore(step=0), "step=0 cannot be used; give a whole number of at least 1."),
        (lambda: Simignore(start=-1), "start=-1 cannot be used"),
        (lambda: Simignore(mode=""), "mode='' is not known"),  # type: ignore[arg-type]
        (lambda: fastervlm.prune(tiny_decoders.llava(), 5, method=FastV(4)), "needs more layers than the 4 there are"),
        (lambda: fastervlm.prune(tiny_decoders.llava(), 0, method=FastV(2)), "keep=0 would leave no visual token"),
        (
            lambda: fastervlm.prune_patches(tiny.llava().model.vision_tower, torch.zeros(1, 3, 32, 32), 5, method="fastv"),
            "FastV",
        ),
    ],
)
def test_settings_that_cannot_be(make, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make()
    one_sentence(error.value)


def test_twice_at_one_layer(model, inputs):
    with fastervlm.prune(model, keep=5, method=FastV(2)) as handle:
        before = insides(model)
        with pytest.raises(UserError, match="pruned at layer 2 already by FastV") as error:
            fastervlm.prune(model, keep=3, method=FastV(2, "mask"))
        one_sentence(error.value)
        assert insides(model) == before
        assert handle.active
    with fastervlm.prune(model, keep=3, method=FastV(2, "mask")):
        logits(model, inputs)


def test_unknown_models_are_refused_untouched():
    config = LlavaConfig(
        vision_config=tiny.llava().config.vision_config,
        text_config=GemmaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8, vocab_size=32
        ),
    )
    for wrong in (LlavaForConditionalGeneration(config), torch.nn.Linear(2, 2), tiny_decoders.llava().model.language_model):
        before = insides(wrong)
        with pytest.raises(UserTypeError, match="cannot be pruned inside") as error:
            fastervlm.prune(wrong, keep=5, method=FastV(1))
        one_sentence(error.value)
        assert insides(wrong) == before


def test_in_llm_methods_are_told_apart():
    kinds = {name for name, method in fastervlm.METHODS.items() if isinstance(method, InLLM)}
    assert kinds == {"fastv", "simignore"}
    assert Simignore().layer == 0
