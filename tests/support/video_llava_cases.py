"""What tests of Video-LLaVA go through, and agreement with one pruned by hand."""

from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import ClipTrace, ImageTrace
from tests.support import tiny
from tests.support.checks import close
from tests.support.plain_video import PROMPTS, rows

N = tiny.PATCHES
ONE, BOTH, MIXED = PROMPTS["one"], PROMPTS["clip and picture"], PROMPTS["mixed"]
each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
each_budget = pytest.mark.parametrize("budget", ["frame", "clip"])
each_side = pytest.mark.parametrize("side", ["left", "right"])
with_and_without_cls = pytest.mark.parametrize("keep_cls", [False, True])
# What is pruned is one thing, how it is generated another: few ways of the first stand for all in tests of the second.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "with cls": {"keep_cls": True, "images": False},
    "over the clip": {"budget": "clip"},
    "original positions": {"positions": "original", "budget": "clip", "keep_cls": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def agree(model, batch, reference, **settings) -> Any:
    """Kept tokens and logits of each row are those of the reference; the batch is not padded. Returns the trace."""
    names = ("keep", "keep_cls", "images", "budget", "positions")
    with fastervlm.prune(model, **({name: getattr(reference, name) for name in names} | settings)) as handle:
        logits = model(**batch).logits
    shown = []
    for ours, (ids, own) in zip(logits, rows(batch), strict=True):
        close(ours, reference.logits(ids, own))
        shown += own or []
    check(handle.trace, reference, shown)
    return handle.trace


def check(traces, reference, shown):
    """Scores and kept patches of pictures and clips, in the order of the prompts."""
    assert [type(trace) for trace in traces] == [ClipTrace if one.dim() == 4 else ImageTrace for one in shown]
    for trace, one in zip(traces, shown, strict=True):
        scores, kept = reference.looked_at(one)[0], reference.choice(one)
        frames = trace.frames if one.dim() == 4 else [trace]
        assert [frame.index.tolist() for frame in frames] == kept
        torch.testing.assert_close(torch.stack([frame.scores for frame in frames]), scores, rtol=0, atol=1e-6)
