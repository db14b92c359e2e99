"""Which tiles make up a picture, by the tokens that a class's own processor writes between them.

A tile has a run of placeholders of its own, or several tiles share one. What stands between two runs tells whether a picture
ends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastervlm.families.generic.pieces import Piece
from fastervlm.families.generic.table import Parting, Tiles
from fastervlm.selection.tile_grids import TileGrid, fitted, shorter_side_covered, stretched_least, tile_grid
from fastervlm.selection.trace import ImageTrace


def pictures_of(pieces: Sequence[Piece], call: Mapping[str, Any], placeholder: int, parting: Parting) -> list[int]:
    """How many pieces each picture of a call has, in their order.

    Where a picture's placeholders are parted by other tokens, as at the end of each row, it is one piece.
    """
    pixels = call["pixel_values"]
    if parting == "row" and pixels.dim() == 5 and len(pieces) == pixels.shape[0] * pixels.shape[1]:
        return [pixels.shape[1]] * pixels.shape[0]
    lengths, begin = _runs(call["input_ids"], placeholder, "run" if parting == "row" else parting)
    begins = {place for place, is_new in zip(accumulate(lengths, initial=0), begin, strict=False) if is_new}
    groups, first = list[int](), 0
    for piece in pieces:
        if first in begins or not groups:
            groups.append(1)
        else:
            groups[-1] += 1
        first += len(piece.tokens)
    return groups


def placed(traces: Sequence[ImageTrace], groups: Sequence[int], tiles: Tiles, side: int) -> list[ImageTrace]:
    """The traces of tiles of `side` pixels, told which of their pictures they are; a picture of one tile is shown whole.

    Args:
        traces: of all pieces.
        groups: how many each picture has.
        tiles: how the processor cuts pictures.
        side: of a tile.
    """
    grid: TileGrid = {
        "nearest": tile_grid,
        "covers": shorter_side_covered,
        "least": partial(stretched_least, side=side),
        "fits": partial(fitted, side=side),
    }[tiles.grid]
    found, every = list[ImageTrace](), iter(traces)
    for count in groups:
        for number in range(count):
            place = (number - 1) % count if tiles.first else number
            shows: Any = "whole" if count == 1 else "part"
            found.append(replace(next(every), tile=(place, count), shows=shows, tiling=grid))
    return found


def _runs(ids: Tensor, placeholder: int, parting: Parting) -> tuple[list[int], list[bool]]:
    """How long each run of placeholders in the prompts ids (R, T) is, and whether a picture begins with it."""
    lengths, begin = list[int](), list[bool]()
    for row in ids.cpu():
        edges = torch.nn.functional.pad((row == placeholder).long(), (1, 1)).diff()
        starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        lengths += [end - start for start, end in zip(starts, ends, strict=True)]
        last = int(row[ends[-1]]) if ends and ends[-1] < len(row) else None
        for number, start in enumerate(starts):
            gap = [] if number == 0 else row[ends[number - 1] : start].tolist()
            begin.append(number == 0 or _parts(gap, last, parting))
    return lengths, begin


def _parts(gap: Sequence[int], last: int | None, parting: Parting) -> bool:
    """Whether a picture ends in this gap."""
    if parting == "run":
        return True
    return len(gap) > 1 if parting == "line" else gap.count(last) > (1 if parting == "around" else 0)
