"""The pictures on which the [CLS] token and the language model agree most and least."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastervlm.analysis.reading import Reading
from fastervlm.analysis.received import KINDS, Received
from fastervlm.analysis.sums import strongest
from fastervlm.eval.answers import writable_folder
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.overlays import Trace, overlay
from fastervlm.selection.trace import ImageTrace

EACH = 3
SIDE = 336


@dataclass(frozen=True)
class Example:
    """A picture twice: under the [CLS] scores, and under the last token's attention."""

    title: str
    text: str
    files: tuple[Path, Path]


def draw_examples(reading: Reading, folder: Path) -> list[Example]:
    """Draw the three pictures with the strongest agreement and three with the weakest into a folder; none of clips."""
    if reading.settings.medium.kind != "image":
        return []
    writable_folder(folder)
    found = []
    for end, lines in zip(("strongest", "weakest"), extremes(reading), strict=True):
        for place, line in enumerate(lines, start=1):
            picture, received = reading.again(line)
            files = folder / f"{end}_{place}_cls.jpg", folder / f"{end}_{place}_last.jpg"
            for path, trace in zip(files, traces(received), strict=True):
                overlay(picture, trace, side=SIDE).save(path, quality=90)
            question = reading.questions[line]
            title = f"{end.capitalize()} agreement: {reading.sums.agreement[line]:.0%}"
            found.append(Example(title, f"{_name(question.image)}: {question.text}", files))
    return found


def _name(image: Any) -> str:
    return image.name if isinstance(image, Path) else str(image)


def extremes(reading: Reading) -> tuple[list[int], list[int]]:
    """Lines of the questions with the strongest and those with the weakest agreement, no picture twice."""
    ranked = sorted(reading.sums.agreement.items(), key=lambda item: -item[1])
    shown: set[Any] = set()
    found: list[list[int]] = []
    for order in (ranked, ranked[::-1]):
        lines: list[int] = []
        for line, _ in order:
            image = reading.questions[line].image
            if len(lines) < EACH and image not in shown:
                shown.add(image)
                lines.append(line)
        found.append(lines)
    return found[0], found[1]


def traces(received: Received) -> tuple[Trace, Trace]:
    """The picture as if the strongest tenth of each unit was kept, by [CLS] score and by the last token's attention."""
    last = torch.zeros(received.scores.numel(), dtype=torch.float64)
    there = received.tokens >= 0
    last[received.tokens[there]] = received.attention[:, KINDS.index("last"), there].mean(dim=0)
    by_cls, by_last = (torch.cat(parts) for parts in strongest(received))
    return _trace(received, received.scores.flatten(), by_cls), _trace(received, last.float(), by_last)


def _trace(received: Received, scores: Tensor, kept: Tensor) -> Trace:
    (first,) = received.trace
    if not isinstance(first, CropsTrace):
        return ImageTrace(scores, kept.sort().values, received.grid)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[kept] = True
    shape = received.scores.shape
    return CropsTrace(scores.view(shape), mask.view(shape), first.tokens, first.cut, first.layout)
