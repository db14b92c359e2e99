"""Pictures that are shrunk in front of the tower, so that it gives fewer tokens: the method "resize".

Dims: B pictures, N patches of each at the tower's own size, n of them shrunk, D language model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoders import UserError, VisionEncoder
from fastervlm.families.base import Encoded, Family
from fastervlm.families.pruning import Pruning
from fastervlm.selection.budget import Budget, TokenBudget
from fastervlm.selection.choice import counts_for, keep_all
from fastervlm.selection.grids import coarser, middles
from fastervlm.selection.trace import ImageTrace


def check_shrinking(family: Family, budget: Budget) -> None:
    """Refuse to shrink pictures of a family whose tower cannot see smaller ones under `fastervlm.prune`, or by such a budget.

    Raises:
        UserError: always where the family does not shrink in the "tower", or where the budget goes by scores.
    """
    if family.shrinks == "processor":
        raise UserError(
            f"A {family.class_name} reads pictures of any size, so that 'resize' is its processor's business; give that a "
            "smaller max_pixels, or use fastervlm compare --methods resize."
        )
    if family.shrinks != "tower":
        raise UserError(
            f"'resize' cannot shrink what a {family.class_name} is shown; use 'pool', or let its processor make pictures "
            "smaller."
        )
    if not isinstance(budget, TokenBudget):
        raise UserError("'resize' shrinks all pictures alike; give a count or a fraction of tokens to keep.")


def encode_shrunk(
    encoder: VisionEncoder, projector: Callable[[Tensor], Tensor], pruning: Pruning, pixel_values: Tensor
) -> Encoded:
    """All tokens of pixel_values (B, 3, H, W) shrunk to a coarser grid; each stands at the middle of what it shows.

    The pictures are shrunk as the processor left them, bicubic and with antialiasing, and the tower's table of positions is
    interpolated to the new grid. With all tokens kept nothing is done at all.
    """
    size = encoder.patch_size
    grid = pixel_values.shape[-2] // size[0], pixel_values.shape[-1] // size[1]
    total = math.prod(grid)
    new = coarser(grid, cast(TokenBudget, pruning.budget).resolve(total))  # see `check_shrinking`
    patches = encoder(shrunk(pixel_values, new, size), interpolate_pos_encoding=new != grid)
    counts = counts_for(TokenBudget(math.prod(new)), patches.scores)
    tokens, _ = keep_all(patches).project(projector)
    keep = torch.zeros(total, dtype=torch.bool, device=patches.scores.device)
    keep[middles(grid, new)] = True
    index = torch.arange(math.prod(new), device=keep.device)
    trace = [ImageTrace(scores, index, new) for scores in patches.scores.detach()]
    return Encoded(list(tokens.split(counts)), [keep] * len(trace), trace)


def shrunk_picture(picture: Image.Image, processor: Any, budget: TokenBudget) -> Image.Image:
    """A picture so small that a processor which shows pictures of any size shows it in at most as many tokens.

    The number of rows and columns follows `coarser`, which comes nearer to what is asked for than `max_pixels` does: that
    rounds both sides down. A picture that has no more tokens anyway is given back as it is.

    Args:
        picture: RGB.
        processor: of a Qwen-VL.
        budget: a count, or a fraction of the tokens that the processor shows the picture in.

    Raises:
        UserError: the processor shows no picture in so few tokens.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torchvision

    images = processor.image_processor
    side, least = images.patch_size * images.merge_size, images.size["shortest_edge"]
    height, width = smart_resize(picture.height, picture.width, side, least, images.size["longest_edge"])
    grid = height // side, width // side
    new = coarser(grid, budget.resolve(math.prod(grid)))
    if new == grid:
        return picture
    if math.prod(new) * side**2 < least:
        raise UserError(
            f"The model's processor shows no picture in fewer than {math.ceil(least / side**2)} tokens; keep more, or give it "
            "a smaller min_pixels."
        )
    return picture.resize((new[1] * side, new[0] * side), Image.Resampling.BICUBIC)


def shrunk(pixel_values: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """pixel_values (B, 3, H, W) in as many pixels as a grid of patches takes; themselves where they have them already."""
    size = [grid[0] * patch_size[0], grid[1] * patch_size[1]]
    if list(pixel_values.shape[-2:]) == size:
        return pixel_values
    small = F.interpolate(pixel_values.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixel_values.dtype)
