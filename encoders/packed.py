"""Towers that pack pictures of many shapes into one sequence: Qwen2-VL's, Qwen2.5-VL's and Qwen3-VL's, of transformers.

Each frame of a clip sees itself alone, a picture is a clip of one frame, and patches stand in the order of the connector, which
joins blocks of them; Qwen2.5's also by windows. All of it up to the last block is computed by the tower's own parts.

Dims: S patches of all pictures of a call, C tower width, M heads, d head width; B frames of one size, N patches of each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from encoders.base import ScoredPatches, image_key
from encoders.block import kind
from encoders.errors import UserError, UserTypeError
from encoders.layers import block_of
from encoders.memory import memory_of
from encoders.packed_block import PackedBlock
from encoders.tower import SCORES, norms

_TOWERS = (
    "transformers.Qwen2VisionTransformerPretrainedModel",
    "transformers.Qwen2_5_VisionTransformerPretrainedModel",
    "transformers.Qwen3VLVisionModel",
)
_SCORES = ("received", "norm")


@dataclass(frozen=True, eq=False)
class PackedFrames:
    """Frames of one size, stopped inside the last block.

    Attributes:
        frames: the numbers of these frames among all of the call.
        places: (B, N) int64, the row of the packed sequence at which each patch stands, patches in raster order.
        patches: the same patches, scored.
    """

    frames: list[int]
    places: Tensor
    patches: ScoredPatches


@dataclass(frozen=True, eq=False)
class Packed:
    """All pictures of a call, stopped inside the last block.

    Attributes:
        parts: frames of equal size together; each frame is in one of them.
        whole: the last block's output (S, C), all rows in the order of the packed sequence, computed as the tower does it.
        states: (S, C) what blocks give that were asked for, by their number from 0.
    """

    parts: list[PackedFrames]
    whole: Callable[[], Tensor]
    states: dict[int, Tensor]


class PackedEncoder:
    """A tower that packs pictures, read up to its last block; the tower itself is not changed.

    Attributes:
        known: the towers that it reads.
        tower: the tower of transformers.
        score: "received" or "norm", see `encoders.wrap`. In a tower with windows "received" is taken from the last block whose
            attention sees whole frames.
        also: the further blocks whose scores are wanted, as for `encoders.wrap`; in a tower with windows the next of those
            whose attention sees whole frames.

    Raises:
        UserError: the tower has nothing to give that score.
        UserTypeError: it is no such tower.
    """

    known: ClassVar[tuple[str, ...]] = _TOWERS

    def __init__(self, tower: nn.Module, score: str = "received", also: Sequence[int | float] = ()) -> None:
        names = [kind(cls) for cls in type(tower).__mro__]
        if not set(self.known) & set(names):
            raise UserTypeError(f"A {type(tower).__name__} packs no pictures; towers that do are {', '.join(self.known)}.")
        if score not in SCORES:
            raise UserError(f"score={score!r} is not known; choose one of {', '.join(SCORES)}.")
        if score not in _SCORES:
            others = ", ".join(f"score={each!r}, {SCORES[each]}" for each in _SCORES)
            raise UserError(
                f"A {type(tower).__name__} has nothing to give score={score!r}; its patches can be scored by {others}."
            )
        home = next(cls for cls in type(tower).__mro__ if kind(cls) in self.known)
        self.tower: Any = tower
        self.score = score
        self.also = {name: block_of(name, len(self.tower.blocks), len(self.tower.blocks)) for name in also}
        self._library: Any = sys.modules[home.__module__]

    def __call__(self, pixel_values: Tensor, grid: Tensor, states: Sequence[int] = ()) -> Packed:
        """Score the patches of all pictures or clips of a call.

        Args:
            pixel_values: (S, 3 * frames of a patch * height * width), patches as the model's processor packs them.
            grid: (pictures, 3) int64, how many frames, rows and columns of patches each picture or clip has.
            states: the blocks, numbered from 0, whose output is wanted too.
        """
        memory = memory_of(self.tower)
        if memory is None:
            return self._packed(pixel_values, grid, states)
        setting = self.score, tuple(self.also.items()), tuple(states)
        return memory.recall([pixel_values, grid], setting, lambda: self._packed(pixel_values, grid, states))

    def _packed(self, pixel_values: Tensor, grid: Tensor, states: Sequence[int]) -> Packed:
        """See `__call__`."""
        _check_pixels(pixel_values, grid)
        walk = self._walk(pixel_values, grid)
        last, kept = len(self.tower.blocks) - 1, {}
        from_block = max((i for i in range(last + 1) if not walk.windowed(i)), default=None)
        if from_block is None and self.score == "received":
            raise UserError(
                "Every block of this tower sees windows only, so that no patch is compared with all; use score='norm'."
            )
        hidden, scored, others = walk.hidden, None, self._others(walk)
        inputs: dict[int, Tensor] = {}
        for number in range(last):
            if number == from_block:
                scored = walk.stopped(number, hidden)
            if number in others.values():
                inputs[number] = hidden
            hidden = walk.run(number, hidden)
            if number in states:
                kept[number] = hidden
        half = walk.stopped(last, hidden)
        inputs[last] = hidden
        more = {name: walk.stopped(number, inputs[number]) for name, number in others.items()}
        memory = memory_of(self.tower)
        whole = (_once if memory is None else memory.once)(lambda: walk.run(last, hidden))
        by = None if self.score == "norm" else (half if scored is None else scored)
        parts = [self._part(walk, frames, half, by, whole, more) for frames in walk.sizes]
        if last in states:
            kept[last] = whole()
        return Packed(parts, whole, kept)

    def _walk(self, pixel_values: Tensor, grid: Tensor) -> PackedWalk:
        return PackedWalk(self.tower, self._library, pixel_values, grid)

    def _part(
        self,
        walk: PackedWalk,
        frames: list[int],
        half: PackedBlock,
        by: PackedBlock | None,
        whole: Callable[[], Tensor],
        more: Mapping[int | float, PackedBlock],
    ) -> Any:
        """`PackedFrames` of some frames of one size, scored in block `by`, or by norm without one, and in `more` blocks."""
        places = torch.stack([walk.places[frame] for frame in frames])
        rows, columns = walk.shapes[frames[0]]
        seen = None if not walk.windowed(len(self.tower.blocks) - 1) else walk.windows[places]

        def finish(index: Tensor | None, cls: bool = False) -> Tensor:
            if cls:
                raise UserError("This tower has no [CLS] token that could be kept; ask for its patches only.")
            if index is None:
                return whole()[places]
            return half.finish(places, index.to(places.device), seen)

        attention = norms(finish(None)) if by is None else by.received(places)
        keys = None if by is None else (lambda: half.keys(places))
        pictures = image_key(walk.pixels[places.to(walk.pixels.device)])
        others = {name: partial(block.received, places) for name, block in more.items()}
        patches = ScoredPatches(attention, (rows, columns), pictures, finish, keys, other_blocks=others)
        return PackedFrames(frames, places, patches)

    def _others(self, walk: PackedWalk) -> dict[int | float, int]:
        """The blocks that `also` names, numbered from 0; each the next one that sees whole frames."""
        seeing = [number for number in range(len(self.tower.blocks)) if not walk.windowed(number)]
        if self.also and not seeing:
            raise UserError("Every block of this tower sees windows only; use a method that needs no second block's scores.")
        return {name: min((n for n in seeing if n >= block - 1), default=max(seeing)) for name, block in self.also.items()}


class PackedWalk:
    """One call's way through a tower: what its blocks take besides the hidden states, and where each patch stands.

    Attributes:
        hidden: (S, C), what stands in front of the first block.
        positions: (S, 2), row and column of each row of the sequence.
        grid: (pictures, 3), frames, rows and columns of patches of each.
        ends: where the windows end in the sequence, in towers that have windows.
    """

    def __init__(self, tower: Any, library: Any, pixels: Tensor, grid: Tensor) -> None:
        self.tower, self.library, self.pixels, self.grid = tower, library, pixels.to(tower.dtype), grid
        positions = library.get_vision_position_ids(grid, tower.config.spatial_merge_size)
        self.lengths, longest = library.get_vision_attention_seqlens(grid, tower.config)
        self.full = {"cu_seqlens": self.lengths, "max_seqlen": longest}
        self.hidden = self._embedded()
        turns = tower.rotary_pos_emb(self.hidden, positions)
        self.windowed_settings: dict[str, Any] | None = None
        if hasattr(tower, "fullatt_block_indexes"):
            order, ends = library.get_vision_window_index(
                grid, spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
            )
            positions, self.hidden, *turns = (
                tower.permute_input_for_window_attn(x, order, seq_len=len(x)) for x in (positions, self.hidden, *turns)
            )
            longest = library.get_max_seqlen(ends, tower.config, kwargs={}, kwarg_name="max_window_seqlen")
            self.windowed_settings, self.ends = {"cu_seqlens": ends, "max_seqlen": longest}, ends
        self.turns = dict(zip(("cosines", "sines"), turns, strict=True))
        self.positions = positions

    def _embedded(self) -> Tensor:
        """(S, C) what stands in front of the first block, in the order of the pixels."""
        tower, hidden = self.tower, self.tower.patch_embed(self.pixels)
        if not hasattr(tower, "pos_embed"):
            return hidden
        places, weights = self.library.get_vision_interpolation_indices_and_weights(
            self.grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.config.spatial_merge_size,
        )
        table = (tower.pos_embed(places) * weights[:, :, None]).sum(1)
        return (hidden + table.to(hidden.dtype)).reshape(len(hidden), -1)

    def run(self, number: int, hidden: Tensor) -> Tensor:
        """Output (S, C) of a whole block, numbered from 0, as the tower calls it."""
        turns = self.turns["cosines"], self.turns["sines"]
        settings = self.windowed_settings if self.windowed(number) else None
        return self.tower.blocks[number](hidden, position_embeddings=turns, **(settings or self.full))

    def stopped(self, number: int, hidden: Tensor) -> PackedBlock:
        """A block that has its input and has computed no more than it is asked for."""
        return PackedBlock(self.tower.blocks[number], hidden, **self.turns)

    def windowed(self, number: int) -> bool:
        """Whether a block sees windows of its frames only."""
        return self.windowed_settings is not None and number not in self.tower.fullatt_block_indexes

    @cached_property
    def windows(self) -> Tensor:
        """(S,) the window that each row of the sequence belongs to."""
        rows = torch.arange(len(self.hidden), device=self.ends.device)
        return torch.searchsorted(self.ends, rows, right=True).to(self.hidden.device)

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of patches of each frame."""
        return [(rows, columns) for frames, rows, columns in self.grid.tolist() for _ in range(frames)]

    @cached_property
    def sizes(self) -> list[list[int]]:
        """The frames of each size."""
        found: dict[tuple[int, int], list[int]] = {}
        for frame, shape in enumerate(self.shapes):
            found.setdefault(shape, []).append(frame)
        return list(found.values())

    @cached_property
    def places(self) -> list[Tensor]:
        """For each frame (N,) the rows at which its patches stand, patches in raster order."""
        found, first = [], 0
        for rows, columns in self.shapes:
            own = self.positions[first : first + rows * columns]
            found.append(first + (own[:, 0] * columns + own[:, 1]).argsort())
            first += rows * columns
        return found


def check_grid(grid: Tensor | None) -> None:
    """Refuse what does not say how many frames, rows and columns each picture has."""
    if grid is None or grid.dim() != 2 or grid.shape[1] != 3:
        raise UserError(
            "Packed pictures need their grids (pictures, 3) beside pixel_values; pass all that the processor returns."
        )


def _check_pixels(pixel_values: Tensor, grid: Tensor) -> None:
    """Refuse patches that are not those of the grids."""
    check_grid(grid)
    if pixel_values.dim() != 2 or len(pixel_values) != int(grid.prod(dim=1).sum()):
        raise UserError(
            f"pixel_values of shape {tuple(pixel_values.shape)} do not hold the {int(grid.prod(dim=1).sum())} patches of these "
            "grids; pass both from one call of the processor."
        )


def _once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`compute`, done once."""
    known: list[Tensor] = []

    def remembered() -> Tensor:
        if not known:
            known.append(compute())
        return known[0]

    return remembered
