"""Pictures that are remembered: no tower and no projector for them, and answers equal to those without, bit by bit."""

import copy
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import METHODS, EncoderSchedule, FastV, Mass, UserError, UserTypeError
from fastervlm.generation.picture_keys import prompt
from fastervlm.selection.method import Traits, traits
from tests.support import family_cases, generic_cases, plain, plain_video, tiny
from tests.support.checks import one_sentence

KEEP = 0.3
ONE, TWO, MORE = plain.PROMPTS["one"], plain.PROMPTS["two pictures"], plain.PROMPTS["ragged pictures"]


def counted(handle, name="tower"):
    """How often all that stands in front of the language model was called, as a list that grows."""
    encode, calls = handle.host.encode, []

    def spied(model, pruning, call):
        calls.append(call)
        return encode(model, pruning, call)

    handle.host.encode = spied
    return calls


def prune(model, keep=KEEP, **settings) -> Any:
    return fastervlm.prune(model, keep, **settings)


def asked_twice(model, first, second, **settings):
    """The logits of both calls, without memory and with it; the second must not encode."""
    with torch.no_grad(), prune(model, **settings):
        expected = [model(**dict(call)).logits for call in (first, second)]
    with torch.no_grad(), prune(model, **settings, remember=9) as handle:
        calls = counted(handle)
        for call, logits in zip((first, second), expected, strict=True):
            assert torch.equal(model(**dict(call)).logits, logits)
            assert len(calls) == 1
        assert handle.memory.hits
        return handle.trace


@pytest.mark.parametrize("name", family_cases.CASES)
@pytest.mark.parametrize("rows", [[[0, 1]], [[1], [0, 2]]], ids=["one prompt", "two prompts"])
def test_every_family_encodes_once(name, rows):
    case = family_cases.CASES[name]
    model = family_cases.random(case.make)
    calls = [family_cases.prompt(case, model, rows, first=number) for number in (0, 5)]
    asked_twice(model, *calls, **case.settings)


@pytest.mark.parametrize("name", generic_cases.CASES)
def test_every_generic_class_encodes_once(name):
    case = generic_cases.CASES[name]
    model = family_cases.random(case.make)
    asked_twice(model, *(generic_cases.prompt(case, [[1], [0, 2]], first=number) for number in (0, 5)))


@pytest.mark.parametrize("settings", [{}, {"budget": "image"}, {"keep": Mass(0.5)}, {"keep": fastervlm.Total(9)}])
def test_crops_of_llava_next_and_clips(settings):
    sizes = [(40, 60), (90, 30)]
    pictures = [tiny.picture(seed).resize(size) for seed, size in enumerate(sizes)]
    calls = [
        dict(tiny.next_processor()(images=pictures, text=[f"<image> {text} <image>?"], return_tensors="pt")) for text in "ab"
    ]
    model = tiny.llava_next()
    asked_twice(model, *calls, **settings)
    with torch.no_grad(), prune(model, remember=2, **settings) as handle:
        model(**calls[0])
        found = counted(handle)
        alone = dict(tiny.next_processor()(images=pictures[1], text="<image>?", return_tensors="pt"))
        model(**alone)  # with fewer empty crops behind its own
        assert not found
    if settings == {"budget": "image"}:
        settings = {"budget": "clip"}
    asked_twice(tiny.video_llava(), *(plain_video.inputs(plain_video.PROMPTS["mixed"]) for _ in range(2)), **settings)


@torch.no_grad()
def test_a_picture_more_is_all_that_is_encoded():
    model, batch = tiny.llava(), plain.inputs(TWO)
    with prune(model):
        expected = model(**plain.inputs(TWO)).logits
    with prune(model, remember=9) as handle:
        calls = counted(handle)
        model(**(plain.inputs(ONE) | {"pixel_values": batch["pixel_values"][1:]}))
        logits = model(**batch).logits
        assert [len(call["pixel_values"]) for call in calls] == [1, 1]
        assert torch.equal(calls[1]["pixel_values"], batch["pixel_values"][:1])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert (handle.memory.hits, handle.memory.misses) == (1, 2)
        assert len(handle.trace) == 2


@torch.no_grad()
def test_one_picture_shown_often_is_encoded_once():
    model, batch = tiny.llava(), plain.inputs(MORE)
    batch["pixel_values"][:] = batch["pixel_values"][:1].clone()
    with prune(model, remember=9) as handle:
        calls = counted(handle)
        model(**batch)
        assert [len(call["pixel_values"]) for call in calls] == [1]
        assert len(handle.memory) == 1
        assert len(handle.trace) == len(batch["pixel_values"])


@dataclass(frozen=True)
class ByQuestion:
    """As many patches from the start, or from the end where the question is long; a choice that only the question makes."""

    traits: Any = field(default=Traits(reads=frozenset({"question"})), repr=False)

    def __call__(self, patches, k):
        count = patches.scores.shape[1]
        first = [count - k if len(text) > 3 else 0 for text in patches.questions]
        return fastervlm.KeptTokens(torch.tensor(first)[:, None] + torch.arange(k), count)


CHANGES: dict[str, Any] = {
    "a pixel": lambda call: call | {"pixel_values": call["pixel_values"].clone().index_fill_(3, torch.tensor(31), 0.5)},
    "another layer": lambda call: call | {"vision_feature_layer": -1},
    "a budget of its own": lambda call: call | {"keep": 4},
    "one token": lambda call: call | {"keep": 1},
    "all tokens": lambda call: call | {"keep": 1.0},
    "another question": lambda call: call | {"questions": ["long question"]},
    "half precision": lambda call: call | {"pixel_values": call["pixel_values"].bfloat16().float()},
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_differs_is_encoded_anew(change):
    model, call = tiny.llava(), plain.inputs(ONE) | {"questions": ["who"]}
    other = CHANGES[change](call)
    with prune(model, 5, method=ByQuestion()):
        expected = [model(**dict(each)).logits for each in (call, other)]
    with prune(model, 5, method=ByQuestion(), remember=9) as handle:
        calls = counted(handle)
        if change == "one token":
            model(**(call | {"keep": 1.0}))  # 1 == 1.0, and they mean other budgets
        for each, logits in zip((call, other, call, other), expected * 2, strict=True):
            assert torch.equal(model(**dict(each)).logits, logits)
        assert len(calls) == 2 + (change == "one token")


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_every_method(name):
    if traits(METHODS[name]).in_llm:
        with pytest.raises(UserError, match="in front of the language model") as error:
            prune(tiny.llava(), 5, method=name, remember=2)
        one_sentence(error.value)
    else:
        model, call = tiny.llava(), plain.inputs(ONE) | {"questions": ["who"]}
        try:
            prune(model, 5, method=name).remove()
        except UserError:
            return  # of no use to this model, remembered or not
        try:
            with prune(model, 5, method=name):
                model(**dict(call))
        except UserError:
            return
        asked_twice(model, call, call, keep=5, method=name)


@torch.no_grad()
def test_who_writes_to_a_trace_changes_nothing_that_is_remembered():
    model, call = tiny.llava(), plain.inputs(ONE)
    with prune(model, 5, remember=9) as handle:
        model(**dict(call))
        expected = handle.trace[0].scores.clone(), handle.trace[0].index.clone()
        for _ in range(3):
            model(**dict(call))
            found = handle.trace[0].scores, handle.trace[0].index
            assert all(map(torch.equal, found, expected))
            for tensor in found:
                tensor.mul_(2)
        assert handle.memory.hits == 3


def test_gradients_are_those_without():
    model, call = tiny.llava(), plain.inputs(ONE)
    found = []
    for remember in (0, 9):
        with prune(model, remember=remember) as handle:
            for _ in range(2):
                model.zero_grad()
                model(**dict(call)).logits.sum().backward()
                found.append(model.model.multi_modal_projector.linear_1.weight.grad.clone())
        assert not remember or len(handle.memory) == 0
    assert all(torch.equal(found[0], other) for other in found[1:])
    model.train()
    with torch.no_grad(), prune(model, remember=9) as handle:
        model(**dict(call))
        assert len(handle.memory) == 0


@torch.no_grad()
def test_the_last_ones_are_remembered_in_memory_of_their_own():
    model = tiny.llava()
    calls = [plain.inputs(ONE, seed=seed) for seed in range(4)]
    with prune(model, 5, remember=2) as handle:
        for number in (0, 1, 0, 2, 0, 3, 1):
            model(**dict(calls[number]))
        # 1 was forgotten when 2 came, because 0 had been asked about since; 2 when 3 came.
        assert (handle.memory.hits, handle.memory.misses, len(handle.memory)) == (2, 5, 2)
        model(**plain.inputs(MORE))
        assert len(handle.memory) == 2
        held = [each for shown in handle.memory._known.values() for each in shown["image"].features]
        assert all(each.untyped_storage().nbytes() == 5 * 32 * 4 for each in held)
        handle.memory.clear()
        assert len(handle.memory) == 0


@torch.no_grad()
def test_a_copy_and_a_schedule_and_generation_and_one_graph():
    model, call = tiny.llava(vision_feature_layer=-1), plain.inputs(ONE)
    more: Any = {"encoder_keep": EncoderSchedule([1], [9])}
    with prune(model, 5, **more):
        expected = model.generate(**dict(call), max_new_tokens=4, do_sample=False)
    with prune(model, 5, remember=3, **more) as handle:
        for _ in range(2):
            assert torch.equal(model.generate(**dict(call), max_new_tokens=4, do_sample=False), expected)
        assert (handle.memory.hits, handle.memory.misses) == (1, 1)
        twin = copy.deepcopy(model)
        assert torch.equal(twin.generate(**dict(call), max_new_tokens=4, do_sample=False), expected)
        assert (handle.memory.hits, handle.memory.misses) == (1, 1)
        handle.compile(backend="eager")
        assert len(handle.memory) == 0
        for _ in range(2):
            assert torch.equal(model.generate(**dict(call), max_new_tokens=4, do_sample=False), expected)
        assert (handle.memory.hits, handle.memory.misses) == (2, 2)


def test_several_threads():
    model = tiny.llava()
    calls = [plain.inputs(ONE, seed=seed) for seed in range(4)]
    with torch.no_grad(), prune(model):
        expected = [model(**dict(call)).logits for call in calls]
    wrong = []

    def ask(first):
        with torch.no_grad():
            for turn in range(12):
                number = (first + turn) % 4
                if not torch.equal(model(**dict(calls[number])).logits, expected[number]):
                    wrong.append(number)

    with prune(model, remember=2) as handle:
        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handle.memory.hits + handle.memory.misses == 48
        assert len(handle.memory) == 2
    assert not wrong


@torch.no_grad()
def test_a_picture_that_cannot_be_encoded_is_named_by_its_place_in_the_call():
    model, batch = tiny.llava(), plain.inputs(TWO)
    with prune(model, remember=9) as handle:
        model(**(plain.inputs(ONE) | {"pixel_values": batch["pixel_values"][:1]}))
        batch["pixel_values"][1, 0, 0, 0] = float("nan")
        with pytest.raises(UserError, match="picture 2 of 2"):
            model(**batch)
        assert len(handle.memory) == 1


@dataclass  # not frozen, so without a hash
class Unhashable:
    k: int = 0

    def __call__(self, patches, k):
        return fastervlm.ClsAttention()(patches, k)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"remember": -1}, UserError, "must be 0 or more"),
        ({"remember": True}, UserTypeError, "whole number of pictures"),
        ({"remember": 2.0}, UserTypeError, "whole number of pictures"),
        ({"remember": 2, "method": FastV()}, UserError, "in front of the language model"),
        ({"remember": 2, "method": Unhashable()}, UserError, "frozen dataclass"),
    ],
)
def test_what_cannot_be_remembered_is_refused(settings, error, words):
    with pytest.raises(error, match=words) as told:
        prune(tiny.llava(), 5, **settings)
    one_sentence(told.value)


@torch.no_grad()
def test_questions_are_still_checked():
    model, call = tiny.llava(), plain.inputs(ONE)
    with prune(model, 5, remember=2):
        model(**dict(call))
        with pytest.raises(UserError, match="questions must be a list"):
            model(**call, questions=["a", "b"])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([5, 9, 9, 6], [7, 8, 9, 9, 4], True),  # the text around a picture
        ([9, 9, 3, 9, 9, 3, 6], [5, 9, 9, 3, 9, 9, 3, 7], True),
        ([9, 9, 3, 9, 9, 3], [9, 9, 4, 9, 9, 3], False),  # what stands between two tiles
        ([9, 9, 3, 9, 9, 3], [9, 9, 3, 9, 9, 4], False),  # what ends the last one
        ([9, 9, 9], [9, 9], False),
    ],
)
def test_what_parts_tiles_is_in_the_key(one, other, same):
    """Tiles of one prompt may be one picture or several, by what stands between them."""
    model = SimpleNamespace(config=SimpleNamespace(image_token_id=9))
    first, second = (prompt(model, {"input_ids": torch.tensor([ids])}) for ids in (one, other))
    assert (first == second) == same
