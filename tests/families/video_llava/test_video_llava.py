"""Video-LLaVA under `prune`, one prompt at a time: what is kept, against one pruned by hand."""

import copy
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import ImageTrace, Mass, TokenBudget, Total, UserError
from fastervlm.families.video_llava import family
from tests.support import plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.plain_video import PROMPTS, VideoPlain, inputs, rows
from tests.support.video_llava_cases import (
    BOTH,
    ONE,
    N,
    agree,
    check,
    each_batch,
    each_budget,
    with_and_without_cls,
)

# --- what is kept, and what stands before the language model


@each_budget
@with_and_without_cls
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 13, 16])
@torch.no_grad()
def test_logits_and_kept_tokens_are_those_by_hand(model, frames, keep_cls, budget):
    batch, reference = inputs(BOTH, frames), VideoPlain(model, N, keep_cls, budget=budget)
    for reference.keep in (1, N // 10 + 1, N // 2, N):
        for reference.images in (True, False):
            clip, picture = agree(model, batch, reference)
            assert clip.num_tokens == frames * (reference.keep + keep_cls)
            assert picture.num_tokens == (reference.keep if reference.images else N)


@each_batch
@torch.no_grad()
def test_every_way_of_pruning_on_every_prompt(model, texts):
    if len(texts) > 1:
        texts = texts[-1:]
    batch = inputs(texts, 4)
    for keep_cls in (False, True):
        for images in (True, False):
            for budget in ("frame", "clip"):
                for positions in ("compact", "original"):
                    agree(model, batch, VideoPlain(model, 3, keep_cls, images, budget, positions=positions))


@torch.no_grad()
def test_a_clip_shares_its_tokens_unequally(model):
    """Some frames are left with none, of which [CLS] stays if it is kept."""
    batch, reference = inputs(ONE, 8), VideoPlain(model, 1, budget="clip")
    shown: Any = next(rows(batch))[1]
    clip = reference.looked_at(shown[0])[0]
    for reference.keep_cls in (False, True):
        (trace,) = agree(model, batch, reference)
        counts = trace.mask.sum(dim=1).tolist()
        assert sum(counts) == 8
        assert 0 in counts
        assert max(counts) > 1
        assert trace.mask.flatten().nonzero().flatten().tolist() == clip.flatten().topk(8).indices.sort().values.tolist()
        assert trace.num_tokens == 8 + 8 * reference.keep_cls


@torch.no_grad()
def test_equal_scores_of_a_clip_go_to_the_earlier_frame(model):
    batch = inputs(ONE, 4)
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:, :1].expand(-1, 4, -1, -1, -1)
    with fastervlm.prune(model, 3, budget="clip") as handle:
        model(**batch)
    counts = handle.trace[0].mask.sum(dim=1).tolist()
    assert sum(counts) == 12
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("keep", "count"), [(0.1, 2), (0.5, 8), (1.0, N), (99, N), (TokenBudget(pruning_rate=0.9), 2)])
@torch.no_grad()
def test_fractions_are_of_one_frame(model, keep, count):
    for budget in ("frame", "clip", "crop"):
        reference = VideoPlain(model, count, budget="clip" if budget == "clip" else "frame")
        agree(model, inputs(ONE), reference, keep=keep, budget=budget)


@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@each_budget
@torch.no_grad()
def test_other_methods_choose_within_each_frame(model, method, budget):
    batch, reference = inputs(BOTH, 4), VideoPlain(model, 3, True, budget=budget)
    shown: Any = next(rows(batch))[1]
    with fastervlm.prune(model, 3, method=method, keep_cls=True, budget=budget) as handle:
        model(**batch)
    kept = {one.dim(): trace for one, trace in zip(shown, handle.trace, strict=True)}
    assert [len(frame) for frame in reference.choice(shown[0])] == kept[4].mask.sum(dim=1).tolist()
    chosen = {4: [frame.index.tolist() for frame in kept[4].frames], 3: [kept[3].index.tolist()]}
    assert chosen[4] != reference.choice(shown[0])
    reference.choice = lambda shown: chosen[shown.dim()]
    agree(model, batch, reference, method=method)


@torch.no_grad()
def test_adaptive_budgets(model):
    """Of each frame as much as holds three fifths of its attention; and a number for the whole clip."""
    batch, reference = inputs(ONE, 16), VideoPlain(model, 2, True, budget="clip")
    agree(model, batch, reference, keep=Total(32), budget="frame")

    def most_of_it(shown):
        found = []
        for row in reference.looked_at(shown)[0]:
            order, total = row.argsort(descending=True).tolist(), 0.0
            for count, patch in enumerate(order, start=1):
                total += float(row[patch])
                if total >= 0.6 * float(row.sum()):
                    found.append(sorted(order[:count]))
                    break
        return found

    reference.choice = most_of_it
    (trace,) = agree(model, batch, reference, keep=Mass(0.6), budget="frame")
    assert len(set(trace.mask.sum(dim=1).tolist())) > 1


@pytest.mark.parametrize("layer", [-1, -3, 1, [-2, -1], [1, 3, 2]])
@torch.no_grad()
def test_layers_by_the_config_and_by_the_call(layer):
    model = tiny.video_llava(vision_feature_layer=layer)
    batch, reference = inputs(BOTH), VideoPlain(model, 3, True, layer=layer)
    stock = model(**batch).logits
    agree(model, batch, reference)
    with fastervlm.prune(model, 1.0, keep_cls=True):
        assert torch.equal(model(**batch).logits, stock)
    model.config.vision_feature_layer = -2 if isinstance(layer, int) else [-2] * len(layer)
    agree(model, batch | {"vision_feature_layer": layer}, reference)


# --- towers that read whole clips


@each_budget
@with_and_without_cls
@torch.no_grad()
def test_a_tower_with_attention_over_time_reads_whole_clips(model, monkeypatch, keep_cls, budget):
    """Its own forward and maps are the reference; frames of a clip see each other, and chunks do not part them."""
    from encoders import wrap
    from encoders.languagebind_tower import LanguageBindVisionModel

    monkeypatch.setattr(family, "CHUNK", 2)
    reference, model = VideoPlain(model, 3, keep_cls, budget=budget), copy.deepcopy(model)
    config = copy.deepcopy(model.config.vision_config)
    config.add_time_attn, config.num_frames = True, 8
    torch.manual_seed(5)
    tower = model.model.video_tower = LanguageBindVisionModel(config).eval()
    for parameter in tower.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    batch, known = inputs(PROMPTS["clips and text"], 3), {}

    def looked_at(shown):
        if id(shown) not in known:
            states = tower(shown[None], output_hidden_states=True).hidden_states[-2]
            known[id(shown)] = wrap(tower)(shown[None]).scores, states, shown
        return known[id(shown)][:2]

    reference.looked_at = looked_at
    shown = []
    with fastervlm.prune(model, 3, keep_cls=keep_cls, budget=budget) as handle:
        logits = model(**batch).logits
    for ours, (ids, own) in zip(logits, rows(batch), strict=True):
        alone = reference.logits(ids, own)
        close(ours[-len(alone) :], alone)
        shown += own or []
    check(handle.trace, reference, shown)


# --- the handle


@torch.no_grad()
def test_the_trace_of_a_clip(model):
    with fastervlm.prune(model, 3, keep_cls=True) as handle:
        assert handle.trace == []
        model(**inputs(BOTH, 4))
    (trace, picture) = handle.trace
    assert trace.scores.shape == trace.mask.shape == (4, N)
    assert (trace.grid, trace.keep_cls, trace.num_tokens) == ((4, 4), True, 4 * (3 + 1))
    assert [frame.num_tokens for frame in trace.frames] == [3] * 4
    assert isinstance(picture, ImageTrace)
    with pytest.raises(UserError, match=r"pass one frame with its own trace, such as trace.frames\[0\]\.") as error:
        fastervlm.overlay(plain.pictures(1)[0], trace)
    one_sentence(error.value)
    assert fastervlm.overlay(plain.pictures(1)[0], trace.frames[0]).mode == "RGB"
