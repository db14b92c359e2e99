"""Where a picture keeps a count, nothing on the way to the language model reads a value from the device.

There is no device here: code is made to believe in one (`waits`), under a watch that refuses every operation by which a value
would come to the host. What the stock model is then handed must be what it is handed on the CPU.
"""

import contextlib
from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import fastervlm
from fastervlm import KeptTokens, Mass, TokenBudget, UserError
from fastervlm.generation import shorten
from tests.support import plain, tiny
from tests.support.checks import one_sentence
from tests.support.plain import PROMPTS

OPERATIONS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave"}
METHODS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"}


class Operations(TorchDispatchMode):
    """Refuses operations whose result depends on values: numbers, truth, places of true values, an index of bools."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        boolean = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in masks)
        reads = name in OPERATIONS or "unique" in name or boolean
        assert not reads, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Refuses methods of tensors that on the CPU read memory without an operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in METHODS, f"{name} waits for the device"
        if name == "one_hot":  # reads on the CPU alone, for a check
            return (args[0][..., None] == torch.arange(args[1])).long()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_a_device(watched=True):
    """All tensors count as if they lay on a device, which nothing may wait for."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as watch:
        for module in ("generation.shorten", "selection.choice", "methods.covering", "methods.vispruner"):
            patch.setattr(f"fastervlm.{module}.waits", lambda x: True)
        if watched:
            watch.enter_context(Methods())
            watch.enter_context(Operations())
        yield


class Handed(BaseException):
    """Ends a call where the stock method would begin, which itself waits at each token."""


def handed(model, batch, what="forward"):
    """What the stock method of that name is handed by a pruned model."""
    calls = []

    def stock(**call):
        calls.append(call)
        raise Handed

    host = model.__dict__["_fastervlm_host"]
    host.own[what] = stock
    with pytest.raises(Handed):
        getattr(model, what)(**batch)
    return calls[0]


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name == "mm_encoder_outputs":
            for kind, found in value.items():
                assert torch.equal(torch.cat(list(ours[name][kind].pooler_output)), torch.cat(list(found.pooler_output)))
        else:
            assert torch.equal(ours[name], value), name


def clip(frames=3, seed=0):
    """A call of a Video-LLaVA about one clip."""
    torch.manual_seed(seed)
    ids = torch.tensor([[1, 40, *[tiny.VIDEO_ID] * (frames * (tiny.PATCHES + 1)), 41, 42]])
    return {"input_ids": ids, "pixel_values_videos": torch.randn(1, frames, 3, tiny.IMAGE, tiny.IMAGE)}


CALLS = {
    "one picture": (tiny.llava, lambda: plain.inputs(PROMPTS["one"])),
    "two pictures": (tiny.llava, lambda: plain.inputs(PROMPTS["two pictures"])),
    "a picture of Video-LLaVA": (tiny.video_llava, lambda: plain.inputs(PROMPTS["one"])),
    "a clip": (tiny.video_llava, clip),
    "more frames than go through the tower at a time": (tiny.video_llava, lambda: clip(35)),
}
SETTINGS = [
    *({"keep": 5, "method": method} for method in fastervlm.METHODS if method not in ("fastv", "simignore")),
    {"keep": 0.3},
    {"keep": tiny.PATCHES},
    {"keep": TokenBudget(pruning_rate=0.5), "positions": "original"},
    {"keep": 5, "keep_cls": True},
    {"keep": 5, "images": False},
    {"keep": 5, "encoder_keep": fastervlm.EncoderSchedule([1], [9])},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_nothing_waits(call, settings):
    make, inputs = CALLS[call]
    model, batch = make(), inputs()
    if settings.keys() & ({"keep_cls", "images"} if make is tiny.llava else {"encoder_keep"}):
        pytest.skip("of the other kind of model only")
    if settings.get("method") == "resize" and make is not tiny.llava:
        pytest.skip("nothing shrinks its pictures")
    for what in ("forward", "generate")[: 1 if "positions" in settings else 2]:
        with fastervlm.prune(model, **settings) as handle:
            expected = handed(model, batch, what)
            trace = handle.trace
            with on_a_device():
                ours = handed(model, batch, what)
            same(ours, expected)
            for one, other in zip(handle.trace, trace, strict=True):
                assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("what", ["forward", "generate"])
@torch.no_grad()
def test_without_a_mask_and_with_labels(what):
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    del batch["attention_mask"]
    batch |= {"labels": batch["input_ids"].clone()} if what == "forward" else {}
    with fastervlm.prune(model, 5):
        expected = handed(model, batch, what)
        with on_a_device():
            ours = handed(model, batch, what)
    same(ours, expected)


READ_AHEAD = [texts for texts in PROMPTS.values() if len(texts) > 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("texts", READ_AHEAD, ids=[name for name, texts in PROMPTS.items() if len(texts) > 1])
@torch.no_grad()
def test_several_prompts_are_read_before_the_tower_starts_and_not_again(texts, side, monkeypatch):
    """What is copied to the host before is read there as often as needed, by these functions."""
    model, batch = tiny.llava(), plain.inputs(texts, side)
    tower, watch, copies = model.model.vision_tower, contextlib.ExitStack(), []

    def copied(x):
        copies.append(x.clone())
        return copies[-1]

    def on_the_host(function, own, ids, *rest):
        assert any(ids is copy for copy in copies)
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return function(own, ids, *rest)

    for name in ("check_placeholders", "_lengths"):
        monkeypatch.setattr(shorten, name, partial(on_the_host, getattr(shorten, name)))
    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    with fastervlm.prune(model, 5):
        expected = handed(model, batch)
        tower.embeddings.register_forward_pre_hook(lambda *_: watch.enter_context(Methods()) and None)
        tower.embeddings.register_forward_pre_hook(lambda *_: watch.enter_context(Operations()) and None)
        with on_a_device(watched=False), watch:
            ours = handed(model, batch)
    same(ours, expected)
    lost = (batch["input_ids"] == plain.IMAGE_ID).sum(dim=1) // tiny.PATCHES * (tiny.PATCHES - 5)
    assert ours["input_ids"].shape[1] == batch["input_ids"].shape[1] - int(lost.min())


def test_the_watch_sees_what_waits():
    x = torch.arange(4)
    reads = [
        lambda: bool((x > 1).any()),
        lambda: int(x.sum()),
        lambda: x.max().item(),
        x.tolist,
        x.numpy,
        x.cpu,
        x.nonzero,
        x.unique,
        lambda: x[x > 2],
        lambda: torch.equal(x, x),
        lambda: 3 in x,
        lambda: x.masked_select(x > 1),
    ]
    for read in reads:
        with pytest.raises(AssertionError, match="waits for the device"), on_a_device():
            read()


@pytest.mark.parametrize("keep", [Mass(0.5)])
@torch.no_grad()
def test_budgets_that_look_at_scores_and_methods_from_outside_wait(keep):
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    with fastervlm.prune(model, keep), pytest.raises(AssertionError, match="waits"), on_a_device():
        handed(model, batch)
    own = lambda patches, k: KeptTokens.top(patches.scores, k)  # noqa: E731
    with fastervlm.prune(model, 5, method=own), pytest.raises(AssertionError, match="waits"), on_a_device():
        handed(model, batch)


WRONG = {
    "a placeholder too few": lambda ids: ids[:, [0, *range(9, ids.shape[1])]],
    "a placeholder too many": lambda ids: torch.cat((ids, torch.full((1, 1), plain.IMAGE_ID)), dim=1),
    "no placeholder": lambda ids: ids.masked_fill(ids == plain.IMAGE_ID, 50),
    "two pictures' placeholders": lambda ids: ids.repeat(1, 2),
}


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("keep", [1, 5, tiny.PATCHES])
@torch.no_grad()
def test_a_prompt_that_does_not_fit_is_refused_by_the_same_sentence(wrong, what, keep):
    """For whichever patches are kept: where the stock model counted as many placeholders by chance, it would be silent."""
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    call = {"input_ids": WRONG[wrong](batch["input_ids"]), "pixel_values": batch["pixel_values"]}
    call |= {"max_new_tokens": 2} if what == "generate" else {}
    for method in ("cls", "cls-lowest", "grid"):
        with fastervlm.prune(model, keep, method=method):
            with pytest.raises(UserError) as friendly:
                getattr(model, what)(**call)
            with pytest.raises(UserError) as found, on_a_device(watched=False):
                getattr(model, what)(**call)
    assert str(found.value) == str(friendly.value)
    one_sentence(found.value)


@torch.no_grad()
def test_placeholders_of_the_other_kind_are_refused_too():
    model, batch = tiny.video_llava(), clip()
    batch["input_ids"] = torch.cat((batch["input_ids"], torch.full((1, 1), plain.IMAGE_ID)), dim=1)
    with fastervlm.prune(model, 5), pytest.raises(UserError, match="but there is no picture"), on_a_device(watched=False):
        model(**batch)


@torch.no_grad()
def test_where_the_stock_model_checks_nothing_an_assertion_does(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    with fastervlm.prune(model, 5), on_a_device(watched=False):
        model(**batch)
        batch["input_ids"] = batch["input_ids"][:, 9:]
        batch["attention_mask"] = batch["attention_mask"][:, 9:]
        with pytest.raises(RuntimeError, match="placeholders of the prompt do not fit"):
            model(**batch)


@torch.no_grad()
def test_an_error_of_the_stock_model_on_a_good_prompt_stays_what_it_is():
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])

    def fails(*_):
        raise ZeroDivisionError("of the language model")

    model.model.language_model.register_forward_pre_hook(fails)
    with fastervlm.prune(model, 5), pytest.raises(ZeroDivisionError, match="of the language model"):
        model(**batch)
