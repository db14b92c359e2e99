"""`prune_patches`: the kept patches of any vision tower, for pipelines that are not LLaVA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders import wrap
from encoders.registry import Score
from fastervlm.methods.lookup import get_method
from fastervlm.selection.budget import Budget
from fastervlm.selection.choice import choose, counts_for
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Method, traits
from fastervlm.selection.schedule import EncoderSchedule, check_fits


@dataclass(frozen=True, eq=False)
class KeptPatches(KeptTokens):
    """The patches a method kept, and where they lie in their pictures.

    Attributes:
        grid: rows and columns of the patches; rows * columns == num_patches.
        patch_size: height and width of a patch in pixels.
    """

    grid: tuple[int, int]
    patch_size: tuple[int, int]

    @property
    def positions(self) -> Tensor:
        """(B, K, 2) int64: row and column of each kept patch."""
        columns = self.grid[1]
        return torch.stack((self.index // columns, self.index % columns), dim=-1)

    @property
    def boxes(self) -> Tensor:
        """(B, K, 4) int64: left, top, right and bottom edge of each kept patch, in pixels of `pixel_values`.

        Right and bottom are the first pixels outside. Where a tower pads its pictures, they may lie beyond the picture.
        """
        size = self.positions.new_tensor(self.patch_size)
        corner = (self.positions * size).flip(-1)
        return torch.cat((corner, corner + size.flip(-1)), dim=-1)


def prune_patches(
    tower: nn.Module,
    pixel_values: Tensor,
    keep: int | float | Budget,
    *,
    method: str | Method = "cls",
    select_layer: int | Sequence[int] = -2,
    score: Score | None = None,
    interpolate_pos_encoding: bool = False,
    encoder_keep: EncoderSchedule | None = None,
) -> tuple[Tensor, KeptPatches]:
    """Compute the best patches of each picture and no others; the tower is neither copied nor changed.

    Scoring stops inside the feature block, and only the kept rows are finished; they equal the whole tower's, indexed
    afterwards. Put them through a projector and into a language model. With a count or fraction to keep it compiles into one
    graph: `torch.compile(lambda pixels: prune_patches(tower, pixels, 58)[0], fullgraph=True)`. Source: FasterVLM, arXiv
    2412.01818.

    Args:
        tower: any tower of `encoders.TOWERS`: transformers' CLIP or SigLIP, an open_clip model, a timm vision transformer.
        pixel_values: (B, 3, H, W), preprocessed for the tower.
        keep: how many patches to keep of each picture: a count (58), a fraction (0.1) or a budget such as `Mass(0.9)`, of as
            many pictures at a time as keep the same number.
        method: which ones: a name in `fastervlm.methods.METHODS` or a method.
        select_layer: the hidden state to take features from, as `wrap` counts it.
        score: "cls", or for a tower without [CLS] "pool", the probe of a pooling head such as SigLIP's, "received" or "norm",
            which every tower has; see `wrap`. None is what the method is defined by, nearly always "cls".
        interpolate_pos_encoding: stretch the position table for pictures of another size, where the tower can.
        encoder_keep: let patches leave inside the tower already, an approximation; see `EncoderSchedule`.

    Returns:
        The kept patches (B, K, C) in raster order, or what a method that merges puts in their places, and which they are.

    Raises:
        UserError: the budget, the method, the layer, the score or the pixels cannot be used with this tower.
        UserTypeError: the tower is of a kind that is not supported.
    """
    budget, chosen = Budget.of(keep), get_method(method)
    told = traits(chosen)
    encoder: Any = wrap(tower, select_layer=select_layer, score=score or told.score or "cls", also=told.also)
    sizes: dict[str, bool] = {"interpolate_pos_encoding": interpolate_pos_encoding}
    if encoder_keep is None:
        patches = encoder(pixel_values, **sizes)
    else:
        whole = check_fits(encoder_keep, budget, told.survives_thinning)
        encoder.check_thinning(encoder_keep.blocks)
        patches = encoder.thinned(pixel_values, lambda count: encoder_keep.counts(count, whole.resolve(count)), **sizes)
    choice = choose(patches, counts_for(budget, patches.scores), chosen)
    kept = choice.kept()
    told = KeptPatches(kept.index, kept.num_patches, weights=kept.weights, grid=patches.grid, patch_size=encoder.patch_size)
    return kept.rows(choice.patches), told
