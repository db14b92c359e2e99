"""The overview decides: the tower reads it first, and its attention says which crops are read at all, and what each keeps.

Dims: S crops of all pictures of a call, overviews among them; N patches of a crop; C crops of one picture, overview apart.
Source of the shares: HiRED, arXiv 2408.10945, which gives each crop its part of the overview's [CLS] attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastervlm.families.base import Encoded
from fastervlm.families.encoding import thinned
from fastervlm.families.llava_next.crops import CropLayout
from fastervlm.families.llava_next.encode import arranged, outside
from fastervlm.families.pruning import Pruning
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.choice import asked, choose, counts_for


def decides(pruning: Pruning) -> bool:
    """Whether the overview has to be read before the crops."""
    schedule = pruning.encoder_keep
    return pruning.settings.budget == "overview" or (schedule is not None and schedule.crops is not None)


def encode_by_overview(
    model: Any,
    pruning: Pruning,
    encoder: Any,
    pixel_values: Tensor,
    cuts: Sequence[CropLayout],
    questions: Sequence[str] | None,
) -> Encoded:
    """The overviews of all pictures go through the tower together, and then those crops that keep any token.

    Args:
        model: with a `multi_modal_projector` and an `image_newline`.
        pruning: whose settings are an `Anyres`, and whose budget reads no scores.
        encoder: its tower.
        pixel_values: (S, 3, H, W), crop after crop, picture after picture.
        cuts: how each picture was cut.
        questions: what is asked about each picture.
    """
    windows, groups = [window for each in cuts for window in each.windows()], [each.crops for each in cuts]
    overviews = [last - crops for last, crops in zip(accumulate(groups), groups, strict=True)]
    patches = asked(thinned(encoder, pruning, pixel_values[overviews]), questions)
    # How many there are to share depends on shapes alone.
    nothing = torch.empty(len(windows), patches.scores.shape[1], device="meta")
    counts = counts_for(pruning.budget, nothing, grid=patches.grid, windows=windows, groups=groups)
    for first, each, scores in zip(overviews, cuts, patches.scores.detach(), strict=True):
        behind = slice(first + 1, first + each.crops)
        counts[behind] = crop_counts(pruning, each, each.attended(scores.clamp(min=0)), counts[behind])
    chosen = [(overviews, choose(patches, [counts[row] for row in overviews], pruning.method))]
    rows = [row for row, count in enumerate(counts) if count and row not in overviews]
    if rows:
        last, most = outside(cuts)[rows], max(counts[row] for row in rows)
        of_each = [sum(first < row < first + crops for row in rows) for first, crops in zip(overviews, groups, strict=True)]
        patches = asked(thinned(encoder, pruning, pixel_values[rows], last, most), questions, of_each)
        choice = choose(patches, [counts[row] for row in rows], pruning.method, windows=[windows[row] for row in rows])
        # All that takes part may be kept while padding has left inside the tower, so that there is no "all patches" to project.
        chosen.append((rows, replace(choice, everything=False)))
    return arranged(model, pruning, chosen, cuts)


def crop_counts(pruning: Pruning, cut: CropLayout, attended: Tensor, given: Sequence[int]) -> list[int]:
    """How many tokens each crop of a picture keeps; one that keeps none is not encoded.

    Args:
        pruning: says of how many crops, by `encoder_keep`, and whether they share what they were given, by `budget`.
        cut: how the picture was cut.
        attended: (C,) the attention that the overview pays to what each shows.
        given: how many each has without that.
    """
    schedule, total = pruning.encoder_keep, len(given)
    read = total if schedule is None or schedule.crops is None else TokenBudget(schedule.crops).resolve(max(1, total))
    stay = set(attended.sort(descending=True, stable=True).indices[:read].tolist())
    if pruning.settings.budget != "overview":
        return [count if crop in stay else 0 for crop, count in enumerate(given)]
    areas = [(low - top) * (far - near) for top, low, near, far in cut.windows()[1:]]
    shares = [share if crop in stay else 0.0 for crop, share in enumerate(attended.tolist())]
    return in_proportion(sum(given), shares, areas)


def in_proportion(total: int, shares: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `shares`, none above its limit, `total` together as far as limits allow.

    What a limit takes away goes to the others. Largest remainders come first, of equal ones the earlier.
    """
    counts = [0] * len(shares)
    open_ones = [row for row, share in enumerate(shares) if share > 0 and limits[row] > 0]
    while open_ones:
        left, whole = total - sum(counts), sum(shares[row] for row in open_ones)
        wanted = {row: left * shares[row] / whole for row in open_ones}
        full = [row for row in open_ones if wanted[row] >= limits[row]]
        if not full:
            counts = [int(wanted.get(row, count)) for row, count in enumerate(counts)]
            order = sorted(open_ones, key=lambda row: int(wanted[row]) - wanted[row])
            for row in order[: total - sum(counts)]:
                counts[row] += 1
            break
        for row in full:
            counts[row] = limits[row]
        open_ones = [row for row in open_ones if row not in full]
    return counts
