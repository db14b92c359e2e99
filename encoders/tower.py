"""The walk through a tower that all adapters share: blocks untouched, the feature block in two halves, nothing after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.base import ScoredPatches, gather_rows, image_key, token_rows
from encoders.block import HalfBlock
from encoders.errors import UserError, UserTypeError
from encoders.layers import block_of, depths
from encoders.memory import Walk, memory_of
from encoders.thinning import Survivors, best, contrast, finish_all_but, without_the_rest

# What can score patches, and what that is. Every tower has the last two.
SCORES = {
    "cls": "the attention of its [CLS] token",
    "pool": "the attention of its pooling head's probe",
    "received": "the attention that a patch gets from all",
    "norm": "the length of its features",
}
_BY_BLOCK = ("cls", "received")


class TowerEncoder(ABC):
    """A vision tower, read up to its feature block; the tower itself is not changed.

    A library's subclass says how its towers embed pictures, which blocks they have and what can score their patches.

    Attributes:
        tower: the library's own tower.
        depths: number of blocks below each selected hidden state.
        score: one of `SCORES`, see `encoders.wrap`.
        also: the further blocks whose scores are wanted, counted from 1, by the names they were asked for by.
    """

    def __init__(
        self,
        tower: nn.Module,
        select_layer: int | Sequence[int] = -2,
        score: str = "cls",
        also: Sequence[int | float] = (),
    ) -> None:
        self.tower: Any = tower
        self.score = score
        self._check_score()
        self.depths = depths(select_layer, self.layers, scored=score in _BY_BLOCK)
        self.also = {name: block_of(name, self.layers, max(self.depths)) for name in also}

    def __call__(self, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False) -> ScoredPatches:
        """Score the patches of pixel_values (B, 3, H, W); see `VisionEncoder`."""
        memory = memory_of(self.tower)
        if memory is None or not isinstance(pixel_values, Tensor):
            return self._patches(pixel_values, interpolate_pos_encoding, Walk())
        walk = memory.walk(pixel_values, (id(self.tower), interpolate_pos_encoding))
        setting = type(self), id(self.tower), self.depths, self.score, tuple(self.also.items()), interpolate_pos_encoding
        return memory.recall(
            [pixel_values], setting, lambda: memory.patches(self._patches(pixel_values, interpolate_pos_encoding, walk))
        )

    def _patches(self, pixel_values: Tensor, interpolate: bool, walk: Walk) -> ScoredPatches:
        """The patches of pixel_values (B, 3, H, W), by a walk on which some blocks may be behind us already."""
        rows, columns, hidden, extra = self._entered(pixel_values, interpolate)
        attention, finish, keys, others = self._scored(hidden, extra, walk)
        key = image_key(self._pictures(pixel_values))
        return ScoredPatches(attention, (rows, columns), key, finish, keys, other_blocks=others)

    def _entered(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int, Tensor, Any]:
        """The grid of patches, and what the first block reads."""
        rows, columns = self._grid(pixel_values, interpolate)
        hidden, extra = self._embed(pixel_values, interpolate)
        if hidden.shape[1] != self.prefix + rows * columns:
            raise UserError("This tower drops patches at random while it trains, so they have no grid; call its eval() first.")
        return rows, columns, hidden, extra

    def _scored(
        self, hidden: Tensor, extra: Any, walk: Walk
    ) -> tuple[Tensor, Callable[..., Tensor], Any, dict[int | float, Any]]:
        """Attention, `finish`, keys and `other_blocks` of `ScoredPatches`, given what the first block reads (B, P + N, C)."""
        deepest = max(self.depths)
        last = {"pool": len(self.blocks), "norm": deepest}.get(self.score, deepest - 1)
        states = self._states(hidden, extra, last, walk)
        parts: dict[int, Callable[..., Tensor]] = {
            depth: partial(token_rows, states[depth], self.prefix) for depth in self.depths if depth in states
        }
        if self.score in _BY_BLOCK:
            block = self._feature_block(deepest - 1, states[deepest - 1], extra)
            parts[deepest] = block.finish
            if self.own_attention:
                parts[deepest] = partial(self._finish, block, deepest - 1, states[deepest - 1], extra)
            attention, keys = self._attention(block), block.keys
        else:
            attention, keys = None, None
        finish = partial(_join, [parts[depth] for depth in self.depths])
        if attention is None:
            attention = self._probe_attention(states[last]) if self.score == "pool" else norms(finish(None))
        others = {name: partial(self._attention_in, block - 1, states[block - 1], extra) for name, block in self.also.items()}
        return attention, finish, keys, others

    def _attention_in(self, block: int, hidden: Tensor, extra: Any) -> Tensor:
        """(B, M, N) float32: the attention that scores patches in a block, numbered from 0, given its input."""
        return self._attention(self._feature_block(block, hidden, extra))

    def _attention(self, block: HalfBlock) -> Tensor:
        """(B, M, N) float32: that of [CLS] where it scores patches, else what each patch receives."""
        return block.cls_attention() if self.score == "cls" else block.received()

    def _finish(
        self, half: HalfBlock, block: int, hidden: Tensor, extra: Any, index: Tensor | None, cls: bool = False
    ) -> Tensor:
        """The rest of a block, numbered from 0, for the patches at an index (B, K); for all of them the stock block itself."""
        if index is not None and index.shape[1] < hidden.shape[1] - self.prefix:
            return half.finish(index, cls)
        return token_rows(self._run(self.blocks[block], hidden, self._extra(extra, block)), self.prefix, index, cls)

    def thinned(
        self,
        pixel_values: Tensor,
        stay: Callable[[int], Mapping[int, int]],
        *,
        last: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ScoredPatches:
        """Score the patches of pixel_values (B, 3, H, W) that survive until the feature block, some of them leaving on the way.

        Positions stay those of all N patches. What has left has no features, and an attention of -1, below all others.

        Args:
            pixel_values: preprocessed for the tower.
            stay: given N, says for some blocks, counted from 1, how many patches stay behind them: those with most attention
                of [CLS] in that block; and for 0 how many enter the first one: those whose pixels vary most.
            last: (B, N) bool, the patches that leave before all others.
            interpolate_pos_encoding: see `VisionEncoder`.

        Raises:
            UserError: see `check_thinning`.
        """
        rows, columns, hidden, extra = self._entered(pixel_values, interpolate_pos_encoding)
        counts, survivors = stay(rows * columns), Survivors.all(len(hidden), rows * columns, hidden.device)
        self.check_thinning(tuple(counts))
        if counts.get(0, survivors.count) < survivors.count:
            varied = contrast(pixel_values, (rows, columns), self.patch_size).to(hidden.device)
            index = best(survivors.marked(varied, last), counts[0])
            hidden = torch.cat((hidden[:, : self.prefix], gather_rows(hidden[:, self.prefix :], index)), dim=1)
            survivors = survivors.take(index)
        deepest = max(self.depths)
        for depth, block in enumerate(self.blocks[: deepest - 1], start=1):
            if counts.get(depth, survivors.count) >= survivors.count:
                hidden = self._run(block, hidden, self._extra(extra, depth - 1))
            else:
                half = self._feature_block(depth - 1, hidden, extra)
                index = best(survivors.marked(half.cls_attention().mean(dim=1), last), counts[depth])
                hidden, survivors = finish_all_but(half, self.prefix, index), survivors.take(index)
        half = self._feature_block(deepest - 1, hidden, extra)
        patches = ScoredPatches(
            half.cls_attention(), (rows, columns), image_key(pixel_values), partial(_join, [half.finish]), half.keys
        )
        return without_the_rest(patches, survivors)

    def check_thinning(self, blocks: Sequence[int]) -> None:
        """Refuse a tower from which patches cannot leave, or blocks in which they cannot."""
        if not self.thins or len(self.depths) > 1:
            raise UserError(
                "Patches can leave only inside a tower with a [CLS] token and without rotary positions (CLIP of transformers, "
                "open_clip or timm) that gives one layer of features; leave encoder_keep out."
            )
        if self.score != "cls":
            raise UserError(f"Patches can leave inside a tower by [CLS] alone, not by score={self.score!r}; leave one out.")
        if max(blocks, default=0) >= max(self.depths):
            raise UserError(
                f"Patches cannot leave in block {max(blocks)}, because features are taken from block {max(self.depths)}; "
                "choose blocks before it."
            )

    def _states(self, hidden: Tensor, extra: Any, last: int, walk: Walk) -> dict[int, Tensor]:
        """Hidden states (B, P + N, C) by their index: those selected, that after `last` blocks, and what `also` reads."""
        walk.states.setdefault(0, hidden)
        wanted = {*self.depths, last, *(block - 1 for block in self.also.values())}

        def step(number: int, hidden: Tensor) -> Tensor:
            return self._run(self.blocks[number], hidden, self._extra(extra, number))

        return {0: walk.states[0]} | {depth: walk.to(depth, step) for depth in sorted(wanted) if depth <= last}

    def _run(self, block: nn.Module, hidden: Tensor, extra: Any) -> Tensor:
        """Output (B, P + N, C) of a whole block, with gradient checkpointing where the tower asks for it."""
        settings = {} if extra is None else {"rope": extra}
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False, **settings)  # type: ignore[return-value]
        return block(hidden, **settings)

    def _extra(self, extra: Any, block: int) -> Any:
        """What one block, numbered from 0, takes besides the hidden states."""
        return extra

    def _pictures(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W), a picture for each row of the output."""
        return pixel_values

    @property
    def thins(self) -> bool:
        """Whether patches may leave inside this tower: it has a [CLS] token, and blocks know no positions."""
        return False

    @property
    def own_attention(self) -> bool:
        """Whether blocks attend otherwise than by torch's sdpa, so that only the block itself has its rounding."""
        return getattr(getattr(self.tower, "config", None), "_attn_implementation", "sdpa") != "sdpa"

    @property
    def takes_clips(self) -> bool:
        """See `VisionEncoder`."""
        return False

    def _check_score(self) -> None:
        """Refuse a score that this tower cannot give, and name those it can."""
        name, has = type(self.tower).__name__, (*self.scores, "received", "norm")
        if self.score not in SCORES:
            raise UserError(f"score={self.score!r} is not known; choose one of {', '.join(SCORES)}.")
        if self.score not in has:
            lacks = "[CLS] token" if self.score == "cls" else "pooling head with one probe"
            others = ", ".join(f"score={score!r}, {SCORES[score]}" for score in has)
            raise UserError(f"This {name} has no {lacks} to score its patches by; it can be wrapped with {others}.")

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The tower's blocks, in their order."""

    @property
    def layers(self) -> int:
        """How many blocks the tower has; an engine may have loaded no more than it needs."""
        return len(self.blocks)

    @property
    @abstractmethod
    def prefix(self) -> int:
        """How many tokens stand before the patches: [CLS], registers, distillation."""

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""

    @property
    @abstractmethod
    def scores(self) -> tuple[str, ...]:
        """What this tower can score its patches by beside what every tower has: "cls", "pool", both or neither."""

    @property
    def checkpointing(self) -> bool:
        """Whether the tower wants its blocks run with gradient checkpointing by whoever walks through them."""
        return False

    @abstractmethod
    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        """Rows and columns of the patches of pixel_values, refused here if the tower cannot read them."""

    @abstractmethod
    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        """What the first block reads (B, P + N, C), and what all blocks take besides: a rotary table, or None."""

    @abstractmethod
    def _feature_block(self, block: int, hidden: Tensor, extra: Any) -> HalfBlock:
        """A block, numbered from 0, stopped after its keys."""

    def _probe_attention(self, hidden: Tensor) -> Tensor:
        """(B, M, N) float32: attention of the pooling head's probe, given the last block's output (B, P + N, C)."""
        raise NotImplementedError


def norms(features: Tensor) -> Tensor:
    """(B, 1, N) float32: the Euclidean length of each of features (B, N, C), as a share of what all of its picture have."""
    length = torch.linalg.vector_norm(features.float(), dim=-1)
    return (length / length.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(length.dtype).tiny))[:, None]


def check_pixels(pixel_values: Tensor, channels: int) -> tuple[int, int]:
    """Height and width of pixel_values (B, channels, H, W), refused here if they have another shape."""
    if not isinstance(pixel_values, Tensor):
        raise UserTypeError(f"pixel_values must be one tensor (B, {channels}, H, W), not a {type(pixel_values).__name__}.")
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != channels:
        raise UserError(f"pixel_values of shape (B, {channels}, H, W) are needed, but these are {shape}.")
    return shape[2], shape[3]


def check_size(size: tuple[int, int], own: tuple[int, int], advice: str) -> None:
    """Refuse pictures of another height and width than a tower's own, where it can read no other."""
    if size != tuple(own):
        raise UserError(
            f"This tower reads pictures of {own[0]} x {own[1]} pixels, but these are {size[0]} x {size[1]}; "
            f"resize them, or {advice}."
        )


def check_loaded(module: nn.Module) -> None:
    """Refuse a module whose own weights are offloaded: they are there only while its forward runs, which is not called."""
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        raise UserError(
            f"The weights of this tower's {type(module).__name__} are offloaded and cannot be read; keep the tower on a device."
        )


def _join(parts: Sequence[Callable[..., Tensor]], index: Tensor | None, cls: bool = False) -> Tensor:
    """Features (B, K, C) of each part, concatenated on channels in their order, on the device of the last computed."""
    features = [part(index, cls) for part in parts]
    if len(features) == 1:
        return features[0]
    return torch.cat([x.to(features[-1].device) for x in features], dim=-1)
