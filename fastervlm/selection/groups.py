"""Visual tokens that are groups of patches, as connectors make them that join neighbours (pixel shuffle, merger, pooling).

Dims: B pictures, M heads, N patches, G groups, g patches of a group, K groups kept, C tower width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from encoders.base import changed


def grouped(
    patches: ScoredPatches,
    members: Tensor,
    grid: tuple[int, int],
    combine: Callable[[Tensor], Tensor],
    whole: Callable[[Tensor], Tensor] | None = None,
) -> ScoredPatches:
    """The groups as what is chosen among, in the place of patches.

    The attention that a group gets is the mean over its patches, its keys are theirs one behind the other, and its features
    what the connector makes of theirs. Only the patches of the groups asked for are finished.

    Args:
        patches: the patches that were scored.
        members: (G, g) int64, the patches of each group, in the order in which the connector takes them.
        grid: rows and columns of the groups; rows * columns == G.
        combine: the part of the connector that joins patches: (B, K, g, C) to (B, K, C').
        whole: the same from all patches (B, N, C) to (B, G, C'), where the stock model computes it otherwise and so rounds
            otherwise.

    Raises:
        UserError: the groups do not fill the grid. Later, where [CLS] is asked for with the features: it belongs to no group.
    """
    groups, size = members.shape
    if grid[0] * grid[1] != groups:
        raise UserError(f"{groups} groups of patches do not fill a grid of {grid[0]} x {grid[1]}; give the grid of the groups.")

    def finish(index: Tensor | None, cls: bool = False) -> Tensor:
        if cls:
            raise UserError("[CLS] belongs to no group of patches; ask for the groups only.")
        if index is None:
            every = patches.features()
            if whole is not None:
                return whole(every)
            return combine(every[:, members.flatten().to(every.device)].unflatten(1, (groups, size)))
        found = patches.features(members.to(index.device)[index].flatten(1))
        return combine(found.unflatten(1, (index.shape[1], size)))

    def keys() -> Tensor:
        every = patches.keys()
        return every[:, :, members.to(every.device)].flatten(-2)

    def over_groups(attention: Tensor) -> Tensor:
        return attention[:, :, members.to(attention.device)].mean(dim=-1)

    return replace(
        patches,
        cls_attention=over_groups(patches.cls_attention),
        grid=grid,
        finish=finish,
        block_keys=None if patches.block_keys is None else keys,
        other_blocks=changed(patches.other_blocks, over_groups),
    )


def blocks(grid: tuple[int, int], side: int) -> Tensor:
    """(G, side * side) int64: the patches of a grid in blocks of side x side, blocks and their patches in raster order.

    Raises:
        UserError: the blocks do not fill the grid.
    """
    rows, columns = grid
    if rows % side or columns % side:
        raise UserError(f"A grid of {rows} x {columns} patches does not part into blocks of {side} x {side}.")
    places = torch.arange(rows * columns).view(rows // side, side, columns // side, side)
    return places.transpose(1, 2).reshape(-1, side * side)
