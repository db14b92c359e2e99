"""A method with FastV on top: the mean over layers against what each layer is given, and against both set up by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import fastervlm
from encoders import UserError, UserTypeError
from fastervlm.bench.compiled import compiled
from fastervlm.bench.variants import pruners_of, variants
from fastervlm.eval.compare import compare
from fastervlm.eval.protocol import method_settings
from fastervlm.eval.settings import chosen
from fastervlm.inllm.trace import TokenTrace, mean_tokens
from fastervlm.methods import METHODS, RandomTokens
from fastervlm.methods.lookup import get_method, is_name, name_of
from fastervlm.methods.with_fastv import WithFastV
from fastervlm.selection.budget import Mass, TokenBudget
from fastervlm.serving.options import Served
from fastervlm.tune.run import tune
from fastervlm.tune.search import Promise
from tests.support import family_cases, tiny
from tests.support.evaluation_fixtures import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject"]
VSCAN = WithFastV(fastervlm.VScan())


@pytest.mark.parametrize(
    ("keep", "total", "layers", "reach", "left", "layer"),
    [
        (64, 576, 32, 96, 32, 16),  # the paper's
        (192, 576, 32, 288, 96, 16),
        (29, 576, 32, 43, 15, 16),
        (500, 576, 32, 576, 424, 16),  # no more than there are
        (576, 576, 32, 576, 576, 16),
        (1, 576, 32, 1, 1, 16),
        (0.1, 576, 32, 87, 29, 16),
        (64, 576, 28, 96, 32, 14),
        (60, 576, 3, 90, 45, 1),
        (58, 576, 5, 87, 39, 2),  # 38 2/3, rounded
    ],
)
def test_the_mean_over_layers_is_k(keep, total, layers, reach, left, layer):
    found = VSCAN.stages(TokenBudget(keep), total, layers)
    first = found.reach.resolve(total)
    second = found.share.resolve(first)
    assert (first, second, found.inside.layer) == (reach, left, layer)
    mean = sum([first if each < layer else second for each in range(layers)]) / layers
    wanted = keep if isinstance(keep, int) else 58
    assert abs(mean - wanted) < 1
    if layers % 2 == 0:
        assert mean == wanted


@pytest.fixture
def inputs():
    told = tiny.processor()(images=[tiny.picture(3)], text=["USER: <image>\nwhat is it? ASSISTANT:"], return_tensors="pt")
    return dict(told)


@torch.no_grad()
def test_each_layer_is_given_what_is_counted(inputs):
    model = tiny.llava()
    lengths = []
    stock = model(**inputs).logits
    with fastervlm.prune(model, keep=6, method="vscan+fastv") as handle:
        layers = model.model.language_model.layers
        hooks = [each.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1])) for each in layers]
        both = model(**inputs).logits
        for hook in hooks:
            hook.remove()
        text = inputs["input_ids"].shape[1] - 16
        seen = [length - text for length in lengths]
        assert seen == [9, 3]
        assert handle.inside.mean_visual_tokens == [sum(seen) / len(seen)] == [6]
        assert (handle.budget, handle.method) == (TokenBudget(6), VSCAN)
        assert [trace.num_tokens for trace in handle.trace] == [9]
        with pytest.raises(UserError, match="cannot bring a budget of its own"):
            model.generate(**inputs, keep=3, max_new_tokens=1)
    with fastervlm.prune(model, keep=9, method="vscan"), fastervlm.prune(model, keep=3, method=fastervlm.FastV(1)):
        assert torch.equal(model(**inputs).logits, both)
    assert torch.equal(model(**inputs).logits, stock)  # both are gone
    with fastervlm.prune(model, keep=16, method="vscan+fastv"):
        assert torch.equal(model(**inputs).logits, stock)


def test_several_prunings_inside_are_one_mean():
    """72 from layer 2 on and 10 from layer 5 on, of 8 layers that 576 tokens come to."""
    traces = [TokenTrace(torch.zeros(576), torch.arange(10), 5), TokenTrace(torch.zeros(576), torch.arange(72), 2)]
    assert mean_tokens(traces, 8) == sum([576] * 2 + [72] * 3 + [10] * 3) / 8
    assert mean_tokens(traces[1:], 8) == sum([576] * 2 + [72] * 6) / 8


@torch.no_grad()
def test_a_handle_inside_counts_all_layers(inputs):
    model = tiny.llava()
    with fastervlm.prune(model, keep=4, method=fastervlm.FastV(1)) as found:
        handle: Any = found
        model(**inputs)
        assert handle.mean_visual_tokens == [(16 + 4) / 2]
    assert handle.mean_visual_tokens == [(16 + 4) / 2]


@torch.no_grad()
def test_a_mean_is_of_what_ran_together(inputs):
    """A handle that came after the call is not in it, and one that left after the call still is."""
    config = tiny.llava().config
    config.text_config.num_hidden_layers = 4
    model = LlavaForConditionalGeneration(config).eval()
    first: Any = fastervlm.prune(model, keep=8, method=fastervlm.FastV(1))
    model(**inputs)
    second: Any = fastervlm.prune(model, keep=4, method=fastervlm.FastV(2))
    assert (first.mean_visual_tokens, second.mean_visual_tokens) == ([(16 + 8 * 3) / 4], [])
    model(**inputs)
    mean = (16 + 8 + 4 * 2) / 4
    assert first.mean_visual_tokens == second.mean_visual_tokens == [mean]
    second.remove()
    assert first.mean_visual_tokens == second.mean_visual_tokens == [mean]
    model(**inputs)
    assert (first.mean_visual_tokens, second.mean_visual_tokens) == ([(16 + 8 * 3) / 4], [mean])


@torch.no_grad()
@pytest.mark.parametrize(("keep", "mean"), [(16, 16), (0.5, 8)])
def test_frames_with_the_tokens_of_pictures_are_counted(keep, mean):
    case = family_cases.CASES["video-llava clips"]
    model = case.make()
    call = family_cases.prompt(case, model, [[0]])
    with fastervlm.prune(model, keep=keep, method="cls+fastv") as handle:
        model(**call)
        assert handle.inside.mean_visual_tokens == [3 * mean]


@torch.no_grad()
@pytest.mark.parametrize("keep", [4, 16, 0.5, 1.0])
@pytest.mark.parametrize("name", ["next-video clips", "onevision clips"])
def test_frames_with_fewer_tokens_than_pictures_are_refused(name, keep):
    """A budget of pictures is not that of such frames; pictures are pruned, and a clip is refused before the tower runs."""
    case = family_cases.CASES[name]
    model = case.make()
    call = family_cases.prompt(case, model, [[0]])
    of_pictures = family_cases.Case(case.make, family_cases.cropped)
    with fastervlm.prune(model, keep=keep, method="coverage+fastv") as handle:
        for ask in (model, lambda **call: model.generate(**call, max_new_tokens=1)):
            with pytest.raises(UserError, match="a frame of a clip has another number of tokens"):
                ask(**call)
        model(**family_cases.prompt(of_pictures, model, [[0]]))
        assert len(handle.inside.mean_visual_tokens) == 1
    with fastervlm.prune(model, keep=keep, method="coverage"):
        model(**call)


@pytest.mark.parametrize("name", ["qwen2 pictures", "qwen2.5 pictures", "qwen3 pictures"])
def test_models_that_refuse_fastv_refuse_it_on_top(name):
    model = family_cases.CASES[name].make()
    said = []
    for method in ("fastv", "coverage+fastv"):
        with pytest.raises((UserError, UserTypeError)) as caught:
            fastervlm.prune(model, keep=4, method=method)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "cannot be pruned inside" in said[0]


def test_a_seed_is_that_of_the_method_in_front(subject, settings, tmp_path):
    seeded = chosen("random+fastv", 2)["method"]
    assert seeded == WithFastV(RandomTokens(2))
    assert name_of(RandomTokens(2)) is name_of(seeded) is None
    assert name_of(chosen("random+fastv", 0)["method"]) == "random+fastv"
    shared = settings(keep=None, answers_file=tmp_path / "n.jsonl", max_new_tokens=1)
    found = compare(subject, shared, budgets=[6], methods=["random+fastv"], out_dir=tmp_path / "out", seeds=2)
    told = [each["method_settings"] for each in found.cell("random+fastv", 6).protocols]
    assert told == [{"name": "random+fastv", "settings": {}}, {"name": "random+fastv", "settings": {"seed": 1}}]


@pytest.mark.parametrize(
    ("method", "wanted", "score"),
    [
        ("cls+fastv", {"name": "cls+fastv", "settings": {}}, "cls"),
        ("coverage+fastv", {"name": "coverage+fastv", "settings": {}}, None),
        ("hiprune", {"name": "hiprune", "settings": {}}, "received"),
        ("hiprune+fastv", {"name": "hiprune+fastv", "settings": {}}, "received"),
        (WithFastV(RandomTokens(3)), {"name": "random+fastv", "settings": {"seed": 3}}, None),
        (WithFastV(fastervlm.VScan(), at=0.25), None, "cls"),
    ],
)
def test_a_protocol_says_what_it_is(settings, method, wanted, score):
    run = settings(keep=6, method=method)
    assert (method_settings(run), run.patch_score) == (wanted, score)
    if wanted:
        assert get_method(wanted["name"], **wanted["settings"]) == get_method(method)


def test_compare_counts_the_mean(subject, settings, tmp_path):
    """In the table, in its numbers and in each protocol."""
    shared = settings(keep=None, answers_file=tmp_path / "n.jsonl", max_new_tokens=1)
    found = compare(subject, shared, budgets=[6], methods=["vscan", "vscan+fastv"], out_dir=tmp_path / "out")
    headers, rows = found.table()
    place = headers.index("visual tokens")
    assert [(row[0], row[1], row[place]) for row in rows] == [
        ("16", "all tokens", "16"),
        ("6", "vscan", "6"),
        ("6", "vscan+fastv", "6"),
    ]
    cell = found.cell("vscan+fastv", 6)
    assert [(each["method"], each["visual_token_num"], each["mean_visual_tokens"]) for each in cell.protocols] == [
        ("vscan+fastv", 6, 6.0)
    ]


def test_names():
    assert get_method("vscan+fastv") == VSCAN
    assert (name_of(VSCAN), name_of(WithFastV(fastervlm.VScan(), at=0.25)), name_of(fastervlm.FastV())) == (
        "vscan+fastv",
        None,
        "fastv",
    )
    assert [is_name(text) for text in ("vscan+fastv", "vscan", "vscan+", "no+fastv")] == [True, True, False, False]
    assert pruners_of(["vscan+fastv"], 2) == {"vscan+fastv": VSCAN}


def test_what_cannot_be_is_refused(subject, settings, tmp_path):
    for name, says in (
        ("fastv+fastv", "which FastV does not"),
        ("resize+fastv", "which Resize does not"),
        ("cls+no", r"no method named 'cls\+no'.* or METHOD\+fastv"),
    ):
        with pytest.raises(UserError, match=says):
            get_method(name)
    for first in (fastervlm.FastV(), METHODS["resize"], VSCAN):
        with pytest.raises(UserError, match="in front of the language model alone, which"):
            WithFastV(first)  # type: ignore[arg-type]
    for first in ("vscan", fastervlm.VScan):
        with pytest.raises(UserError, match="is no method; give one"):
            WithFastV(first)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leave nothing for the later layers"):
        WithFastV(fastervlm.VScan(), at=0.7)
    with pytest.raises(UserError, match="1 are too few"):
        VSCAN.stages(TokenBudget(6), 16, 1)
    with pytest.raises(UserError, match="cannot be a mean over layers"):
        VSCAN.stages(Mass(0.9), 16, 2)
    with pytest.raises(UserError, match="prunes inside a language model too"):
        VSCAN(None, 3)  # type: ignore[arg-type]
    workload: Any = SimpleNamespace(num_visual_tokens=16)  # which a refused variant does not get to
    _, variant = variants(workload, ["vscan+fastv"], [4], [1])
    with pytest.raises(UserError, match=r"vscan\+fastv does not prune in front of the language model alone"):
        compiled(workload, variant, repeats=1)
    with pytest.raises(UserError, match="a server runs as it is"):
        Served(6, "vscan+fastv")
    shared = settings(keep=None, answers_file="n.jsonl")
    with pytest.raises(UserError, match=r"vscan\+fastv prunes inside the language model, which tune does not try"):
        tune(subject, shared, Promise(0.1), budgets=[4], methods=["vscan+fastv"], out_dir=tmp_path / "tune")
