"""From packed pixels to kept and merged tokens, of models whose tower packs pictures of many shapes into one sequence.

Dims: S patches of all pictures of a call, C tower width; B frames of one size, N tokens of each, g patches of a token; D width
of the language model. A picture is a clip of one frame here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from encoders.packed import Packed, PackedEncoder, PackedFrames
from fastervlm.families.base import Encoded
from fastervlm.families.pruning import Pruning
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.selection.choice import Choice, asked, choose, counts_for
from fastervlm.selection.groups import blocks, grouped
from fastervlm.selection.trace import ImageTrace


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What was kept of the frames of one size.

    Attributes:
        part: the frames.
        choice: among their tokens.
        members: (N, g), the patches of each token.
    """

    part: PackedFrames
    choice: Choice
    members: Tensor

    @property
    def first(self) -> Tensor:
        """(B, N) the row of the packed sequence at which each token's patches begin; all of them stand there in a row."""
        return self.part.places[:, self.members[:, 0].to(self.part.places.device)]


def encode_packed(
    model: Any,
    pruning: Pruning,
    pixels: Tensor,
    grid: Tensor,
    questions: Sequence[str] | None,
    *,
    clips: bool,
    states: Sequence[int] = (),
    encoder: type[PackedEncoder] = PackedEncoder,
) -> Encoded:
    """Score, choose, and only then finish and merge the kept patches of all pictures or all clips.

    Args:
        model: a Qwen-VL; its merger turns g patches into a token.
        pruning: whose settings say whether the frames of a clip share their tokens.
        pixels: (S, ...) as the processor packs them.
        grid: (pictures, 3), frames, rows and columns of each.
        questions: what is asked about each.
        clips: whether they are clips, of which a trace tells frame by frame.
        states: the blocks whose output is merged too, and stands behind the token's own features: (T_i, D * (1 + blocks)).
        encoder: what reads the tower.
    """
    tower, side = model.model.visual, model.model.visual.spatial_merge_size
    packed = encoder(tower, **pruning.tower)(pixels.type(tower.dtype), grid, states)
    lengths = grid[:, 0].tolist()
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    found = [_choose(pruning, part, side, owner, questions) for part in packed.parts]
    mergers = _mergers(tower, states)
    if all(each.choice.everything for each in found):
        rows = _all_rows(packed, found, mergers, states, side)
    else:
        rows = _kept_rows(packed, found, mergers, states)
    frames: dict[int, tuple[Tensor, Tensor, ImageTrace]] = {}
    for each, own in zip(found, rows, strict=True):
        for row, frame in enumerate(each.part.frames):
            mask, scores = each.choice.mask[row], each.choice.patches.scores[row].detach()
            trace = ImageTrace(scores, mask.nonzero()[:, 0], each.choice.patches.grid, shows="whole")
            frames[frame] = own[row], mask, trace
    return _by_clip(frames, lengths, clips)


def _choose(pruning: Pruning, part: PackedFrames, side: int, owner: Sequence[int], questions: Sequence[str] | None) -> _Chosen:
    """What is kept of the frames of one size; those of a clip stand together."""
    numbers = [owner[frame] for frame in part.frames]
    clips = list(dict.fromkeys(numbers))
    groups = [numbers.count(clip) for clip in clips]
    (rows, columns), members = part.patches.grid, blocks(part.patches.grid, side)
    tokens = grouped(part.patches, members, (rows // side, columns // side), lambda x: x.flatten(-2))
    tokens = asked(tokens, None if questions is None else [questions[clip] for clip in clips], groups)
    counts = counts_for(pruning.budget, tokens.scores, groups=groups, pool=pruning.settings)
    return _Chosen(part, choose(tokens, counts, pruning.method), members)


def _mergers(tower: Any, states: Sequence[int]) -> list[Callable[[Tensor], Tensor]]:
    """What makes tokens of patches (n * g, C): of the last block's, then of the states asked for."""
    deep = [tower.deepstack_merger_list[list(tower.deepstack_visual_indexes).index(state)] for state in states]
    return [tower.merger, *deep]


def _all_rows(
    packed: Packed, found: list[_Chosen], mergers: list[Callable[[Tensor], Tensor]], states: Sequence[int], side: int
) -> list[list[Tensor]]:
    """All tokens of each frame, merged at once as the stock model does it, and so with its rounding."""
    tables = [packed.whole(), *(packed.states[state] for state in states)]
    merged = torch.cat([merger(table) for merger, table in zip(mergers, tables, strict=True)], dim=-1)
    return [list(merged[(each.first // side**2).to(merged.device)]) for each in found]


def _kept_rows(
    packed: Packed, found: list[_Chosen], mergers: list[Callable[[Tensor], Tensor]], states: Sequence[int]
) -> list[list[Tensor]]:
    """The kept tokens of each frame."""
    rows = []
    for each in found:
        table, _ = each.choice.project(partial(merged, mergers[0], each.members.shape[1]))
        tables = [table]
        if states:
            if each.choice.weights is not None:
                raise UserError(
                    "This method merges tokens, which features of other layers that this model takes too cannot follow; use a "
                    "method that chooses, such as 'coverage'."
                )
            first = each.first[each.choice.mask.to(each.first.device)]
            places = first[:, None] + torch.arange(each.members.shape[1], device=first.device)
            for merger, state in zip(mergers[1:], states, strict=True):
                tables.append(merger(packed.states[state][places].flatten(0, 1)))
        rows.append(list(torch.cat(tables, dim=-1).split(each.choice.counts)))
    return rows


def merged(merger: Callable[[Tensor], Tensor], size: int, x: Tensor) -> Tensor:
    """Tokens (..., D) of the patches of each, side by side (..., g * C)."""
    return merger(x.unflatten(-1, (size, -1)).flatten(0, -2)).unflatten(0, x.shape[:-1])


def _by_clip(frames: Mapping[int, tuple[Tensor, Tensor, ImageTrace]], lengths: list[int], clips: bool) -> Encoded:
    """The frames one after the other, clip by clip."""
    features, keep, traces, first = [], [], [], 0
    for length in lengths:
        own = [frames[frame] for frame in range(first, first + length)]
        first += length
        features.append(torch.cat([part[0] for part in own]))
        keep.append(torch.cat([part[1] for part in own]))
        if clips:
            scores, mask = torch.stack([part[2].scores for part in own]), torch.stack([part[1] for part in own])
            traces.append(ClipTrace(scores, mask, own[0][2].grid, False, shows="whole"))
        else:
            traces.append(own[0][2])
    return Encoded(features, keep, traces)
