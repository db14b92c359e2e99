"""What every vision encoder gives: patches scored by the [CLS] token, and their features on demand.

Dims: B batch, M heads, N patches, K kept patches, C tower width, d head width. Source: FasterVLM, arXiv 2412.01818.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from encoders.errors import UserError, UserTypeError

_QUERIES = 1024
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class ScoredPatches:
    """A batch of images, stopped inside the feature block: scored already, its features not computed yet.

    Attributes:
        cls_attention: (B, M, N) float32, the softmax over all keys of the [CLS] query of the feature block. The columns of
            [CLS] itself and of other prefix tokens are dropped and nothing is renormalised, so a row sums to less than 1.
            With another score than "cls" it is what takes the place of that, see `encoders.wrap`: a row of attention for each
            head, or (B, 1, N) shares that sum to 1.
        grid: rows and columns of the patches; rows * columns == N.
        image_key: (B,) int64, see `image_key`.
        finish: runs the rest of the feature block for the patches at an index (B, K), or for all patches at None; a true second
            argument asks for [CLS] too.
        block_keys: gives `keys()`; None where no block was stopped.
        questions: what is asked about each image, where that is known.
        other_blocks: for each further block that was asked for, by the name it was asked for by, gives the same as
            `cls_attention` there; see `encoders.wrap`.
    """

    cls_attention: Tensor
    grid: tuple[int, int]
    image_key: Tensor
    finish: Callable[..., Tensor] = field(repr=False)
    block_keys: Callable[[], Tensor] | None = field(default=None, repr=False)
    questions: tuple[str, ...] | None = None
    other_blocks: Mapping[int | float, Callable[[], Tensor]] = field(default_factory=dict, repr=False)

    @property
    def scores(self) -> Tensor:
        """(B, N) float32: the attention each patch gets from [CLS] (or what takes its place), a plain mean over the heads."""
        return self.cls_attention.mean(dim=1)

    def features(self, index: Tensor | None = None, *, cls: bool = False) -> Tensor:
        """Output of the feature block for the patches at `index` only.

        Args:
            index: (B, K) patch positions 0..N-1, in the order wanted; all patches without it.
            cls: put [CLS] in front of the patches; UserError if the tower has none.

        Returns:
            (B, K, C), or (B, N, C) without an index, and one row more with `cls`; equal to the whole tower's output, indexed
            afterwards.
        """
        if index is not None:
            self._check(index)
        return self.finish(index, True) if cls else self.finish(index)

    def keys(self) -> Tensor:
        """(B, M, N, d): the keys of the patches in the feature block, turned by their positions where the tower does so.

        Raises:
            UserError: no block was stopped, because a pooling head or the features themselves score the patches.
        """
        if self.block_keys is None:
            raise UserError("Patches with this score come without keys; choose a method that needs none.")
        return self.block_keys()

    def scores_in(self, block: int | float) -> Tensor:
        """(B, N) float32: attention in another block, one of those named by `also` in `encoders.wrap`; see there.

        It costs the keys of that block and one row of attention; the whole map where patches are scored by what they receive.

        Raises:
            UserError: that block was not asked for, or patches have left inside the tower.
        """
        if block not in self.other_blocks:
            raise UserError(
                f"Patches come without scores of block {block} here; name it by also=({block},) where the tower is wrapped, or "
                "choose a method that needs no second block."
            )
        return self.other_blocks[block]().mean(dim=1)

    def _check(self, index: Tensor) -> None:
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise UserTypeError(f"An index holds whole numbers, patch positions, but this one is {index.dtype}.")
        batch = len(self.cls_attention)
        if index.dim() != 2 or len(index) != batch:
            raise UserError(f"An index of shape ({batch}, K) is needed for {batch} images, not {tuple(index.shape)}.")


def changed(
    blocks: Mapping[int | float, Callable[[], Tensor]], change: Callable[[Tensor], Tensor]
) -> dict[int | float, Callable[[], Tensor]]:
    """`ScoredPatches.other_blocks` with a change of what each gives."""
    return {name: partial(_changed, give, change) for name, give in blocks.items()}


def _changed(give: Callable[[], Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(give())


class VisionEncoder(Protocol):
    """A vision tower that can stop inside its feature block; what `encoders.wrap` returns."""

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels of `pixel_values`."""
        ...

    @property
    def takes_clips(self) -> bool:
        """Whether frames of a clip see each other in this tower: pixel_values are then (B, F, 3, H, W), and what is given has
        B * F rows, the frames of a clip one after the other."""
        ...

    def __call__(self, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False) -> ScoredPatches:
        """Score the patches of a batch of images.

        Args:
            pixel_values: (B, 3, H, W), preprocessed for the tower.
            interpolate_pos_encoding: stretch the position table for pictures of another size than the tower's own, as
                transformers' towers do on demand. timm's do it where they are made with `dynamic_img_size=True`, asked or
                not; open_clip's never.
        """
        ...


def cls_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention of the [CLS] query alone, in float32 whatever the tower's dtype: one row, never an N x N map.

    Each image is multiplied for itself, so that no rounding depends on the rest of the batch.

    Args:
        query: (B, M, 1, d), the [CLS] row.
        key: (B, M, T, d), all T tokens.
        scale: what the dot products are multiplied by.

    Returns:
        (B, M, T) float32, each row summing to 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        pairs = zip(query.float().split(1), key.float().split(1), strict=True)
        logits = torch.cat([torch.matmul(q, k.transpose(-1, -2)) for q, k in pairs]) * scale
        return logits.softmax(dim=-1).squeeze(-2)


def received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The attention that each token gets from all of them, a mean over the queries, in float32 whatever the tower's dtype.

    One head of one image at a time, and no more than `_QUERIES` queries: a map of all heads is never kept.

    Args:
        query: (B, M, T, d).
        key: (B, M, T, d).
        scale: what the dot products are multiplied by.

    Returns:
        (B, M, T) float32, each row summing to 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        found = [
            [_mean_row(q.float(), k.float() * scale) for q, k in zip(*image, strict=True)]
            for image in zip(query, key, strict=True)
        ]
        return torch.stack([torch.stack(image) for image in found])


def _mean_row(query: Tensor, key: Tensor) -> Tensor:
    """(T,) the mean over queries (T, d) of their softmax over keys (T, d)."""
    return sum((q @ key.T).softmax(dim=-1).sum(dim=0) for q in query.split(_QUERIES)) / len(query)  # type: ignore[return-value]


def gather_rows(x: Tensor, index: Tensor | None) -> Tensor:
    """Rows of x (B, N, C) at index (B, K), as (B, K, C); x itself without an index."""
    if index is None:
        return x
    positions = index.to(x.device, torch.long).unsqueeze(-1)
    return x.gather(1, positions.expand(-1, -1, x.shape[-1]))


def token_rows(x: Tensor, prefix: int, index: Tensor | None, cls: bool = False) -> Tensor:
    """Rows of the patches at index (B, K), or of all at None, of x (B, P + N, C); with `cls` its first row, [CLS], in front."""
    if cls and not prefix:
        raise UserError("This tower has no [CLS] token that could be kept; ask for its patches only.")
    patches = gather_rows(x[:, prefix:], index)
    return torch.cat((x[:, :1], patches), dim=1) if cls else patches


def image_key(pixel_values: Tensor) -> Tensor:
    """An exact integer key of each image: the sum of the bits of its pixels.

    It does not depend on the other images of a batch nor on the order of summation, and it never waits for the device. A
    seeded random method draws by it, so that an image keeps the same patches alone and in any batch.

    Args:
        pixel_values: (B, ...) of any dtype.

    Returns:
        (B,) int64.
    """
    pixels = pixel_values.detach()
    bits = pixels.view(_BITS[pixels.element_size()]) if pixels.is_floating_point() else pixels
    return bits.flatten(1).sum(dim=1, dtype=torch.int64)
