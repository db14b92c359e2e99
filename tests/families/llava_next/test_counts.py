"""How many tokens of a picture stay is known from its size alone: as many as a mask of that many patches a crop leaves."""

import pytest
import torch

from fastervlm.families.llava_next.crops import CropLayout
from tests.support import tiny

SIZES = [(32, 32), (20, 60), (60, 20), (7, 300), (300, 7), (41, 57), (64, 96), (1, 1), (33, 1000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("newline", ["all", "none"])
def test_the_count_is_that_of_the_mask(size, newline):
    side = tiny.IMAGE // tiny.PATCH
    layouts = [
        CropLayout.native(size, tiny.pinpoints(), tiny.IMAGE, side),
        CropLayout.paper(size, tiny.pinpoints(), tiny.IMAGE, side),
        CropLayout.single(size, tiny.IMAGE, side),
    ]
    for cut in layouts:
        for keep in (1, 3, 15, 16):
            kept = torch.zeros(cut.crops, side, side, dtype=torch.bool)
            for crop, (top, bottom, left, right) in zip(kept, cut.windows(), strict=True):
                window = torch.zeros(bottom - top, right - left, dtype=torch.bool)
                window.flatten()[:keep] = True
                crop[top:bottom, left:right] = window
            assert cut.count(keep, newline) == int(cut.keep(kept.flatten(), newline).sum())
