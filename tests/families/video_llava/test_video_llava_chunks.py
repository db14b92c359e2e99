"""Long clips of Video-LLaVA under `prune`: in chunks of frames, of which one at a time is in memory."""

import copy
import weakref

import pytest
import torch

import fastervlm
from fastervlm import Mass, Total
from fastervlm.families.video_llava import family
from fastervlm.families.video_llava.family import _by_chunk
from tests.support.checks import close
from tests.support.plain_video import PROMPTS, VideoPlain, inputs, rows
from tests.support.video_llava_cases import (
    BOTH,
    ONE,
    agree,
    each_budget,
)


@pytest.mark.parametrize(
    ("keep", "settings"),
    [
        (3, {}),
        (3, {"keep_cls": True}),
        (3, {"budget": "clip", "keep_cls": True}),
        (1.0, {"keep_cls": True}),
        (2, {"method": "random", "budget": "clip"}),
        (Mass(0.5), {}),
        (Total(20), {}),
        (Mass(0.5), {"budget": "clip"}),
    ],
)
@torch.no_grad()
def test_the_size_of_a_chunk_does_not_matter(model, monkeypatch, keep, settings):
    """Two clips of seven frames; chunks begin and end within clips."""
    batch = inputs(PROMPTS["two clips"], 7)
    with fastervlm.prune(model, keep, **settings) as handle:
        expected, kept = model(**batch).logits, handle.trace
        for chunk in (1, 2, 5, 7, 13):
            monkeypatch.setattr(family, "CHUNK", chunk)
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
            for ours, theirs in zip(handle.trace, kept, strict=True):
                assert torch.equal(ours.mask, theirs.mask)
                torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-6)


@each_budget
@torch.no_grad()
def test_one_chunk_at_a_time_is_in_memory(model, monkeypatch, budget):
    """What was made of a chunk is gone before the next one comes as far, and no chunk is larger than it should be."""
    monkeypatch.setattr(family, "CHUNK", 4)
    alive, sizes = [], []

    def watch(module, args, output):
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(output))
        sizes.append(len(output))

    hook = model.model.video_tower.encoder.layers[1].layer_norm1.register_forward_hook(watch)  # of the feature block
    with fastervlm.prune(model, 3, budget=budget):
        model(**inputs(ONE, 14))
    hook.remove()
    assert sizes == [4, 4, 4, 2] * (2 if budget == "clip" else 1)


@torch.no_grad()
def test_a_bound_of_a_clip_needs_no_second_look(model, monkeypatch):
    """The shape says how many tokens each frame has, so that the tower runs once, and the bound holds for the clip."""
    monkeypatch.setattr(family, "CHUNK", 4)
    seen = []
    hook = model.model.video_tower.encoder.layers[1].layer_norm1.register_forward_hook(lambda *args: seen.append(len(args[2])))
    with fastervlm.prune(model, fastervlm.AtMost(20)) as handle:
        model(**inputs(ONE, 14))
    hook.remove()
    assert seen == [4, 4, 4, 2]
    assert int(handle.trace[0].mask.sum()) == 20


@torch.no_grad()
def test_more_frames_than_a_chunk_by_hand(model):
    frames = family.CHUNK + 3
    for budget in ("frame", "clip"):
        agree(model, inputs(ONE, frames), VideoPlain(model, 2, True, budget=budget))


def test_gradients_through_chunks_are_those_by_hand(model, monkeypatch):
    monkeypatch.setattr(family, "CHUNK", 2)
    model = copy.deepcopy(model)
    batch, reference = inputs(BOTH), VideoPlain(model, 3, True, budget="clip")
    ids, own = next(rows(batch))
    labels = torch.tensor(ids)[reference.columns(ids, own)]
    loss = torch.nn.functional.cross_entropy(reference.logits(ids, own)[:-1], labels[1:])
    loss.backward()
    model.train()
    with fastervlm.prune(model, 3, keep_cls=True, budget="clip"):
        output = model(**batch, labels=batch["input_ids"])
    close(output.loss, loss)
    output.loss.backward()
    for name in ("multi_modal_projector.linear_1", "video_tower.embeddings.patch_embedding", "image_tower.pre_layrnorm"):
        ours, theirs = (part.get_submodule(name).weight.grad for part in (model.model, reference.model.model))
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(4, ["aaab", "bb"]), (2, ["aa", "ab", "bb"])])
def test_each_frame_of_a_chunk_goes_with_its_clips_question(size, expected):
    """Of two clips with three frames each, in chunks of frames or of clips."""
    videos = torch.zeros(2, 3, 3, 4, 4)
    chunks = videos.flatten(0, 1).split(size)
    assert ["".join(about or []) for about in _by_chunk(["a", "b"], chunks, 3)] == expected
    assert _by_chunk(["a", "b"], videos.split(1), 3) == [["a"] * 3, ["b"] * 3]
    assert _by_chunk(None, videos.split(1), 3) == [None, None]
