"""One model and one ragged batch of each family, for tables of family x mode x keep."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from tests.support import plain, plain_next, plain_video, tiny
from tests.support.plain import Plain
from tests.support.plain_next import NextPlain
from tests.support.plain_video import VideoPlain


@dataclass(frozen=True)
class Kind:
    """How a family is tested: its tiny model, prompts, its slow reference, and what keeps all as the stock model does."""

    model: Any
    inputs: Any
    reference: Any
    ragged: list[str]
    one: list[str]
    whole: dict[str, Any]

    def rows(self, reference, batch):
        """The rows of a batch as its reference takes them."""
        return list(reference.rows(batch) if hasattr(reference, "rows") else self._rows(batch))

    @staticmethod
    def _rows(batch):
        return plain_video.rows(batch) if "pixel_values_videos" in batch else plain.rows(batch)


KINDS = {
    "llava": Kind(tiny.llava, plain.inputs, Plain, plain.PROMPTS["ragged pictures"], plain.PROMPTS["one"], {"keep": 1.0}),
    "llava_next": Kind(
        tiny.llava_next, plain_next.inputs, NextPlain, plain.PROMPTS["ragged"], plain.PROMPTS["one"], {"keep": 1.0}
    ),
    "video_llava": Kind(
        tiny.video_llava,
        plain_video.inputs,
        VideoPlain,
        plain_video.PROMPTS["mixed"],
        plain_video.PROMPTS["one"],
        {"keep": 1.0, "keep_cls": True},
    ),
}


def loop_by_hand(reference, rows, count, process, ends=2):
    """`count` new tokens of each row of (ids, pictures), greedily, by `process(ids, logits)` on the whole row.

    `ids` (1, T + new) is what a logits processor is to see, logits are (1, V).
    """
    found = []
    for ids, pictures in rows:
        new: list[int] = []
        while len(new) < count and ends not in new:
            logits = reference.logits(ids + new, pictures)[-1:].float()
            new.append(int(process(torch.tensor([ids + new]), logits).argmax()))
        found.append(new)
    return found


class WatchedProcessor(LogitsProcessor):
    """Keeps the ids that it is handed."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.seen.append(input_ids.clone())
        return scores


class WatchedCriterion(StoppingCriteria):
    """Keeps the ids that it is handed, and never stops."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.seen.append(input_ids.clone())
        return torch.zeros(len(input_ids), dtype=torch.bool)
