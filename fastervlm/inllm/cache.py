"""KV caches whose deeper layers hold fewer keys, without anybody noticing.

A layer of such a cache reports the length of the whole prompt, so that everything outside the decoder layers counts and masks
as if nothing were gone; the decoder layers know better (see `run`). Which columns its keys are, the cache remembers itself,
through reordering, copying and cutting. It grows only where its owner lets it: elsewhere the stock model would misread it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from encoders import UserError
from fastervlm.inllm.columns import Columns

_KNOWN = "_fastervlm_inllm"


class Memory:
    """The columns that the keys of some layers of one cache belong to; these layers share it.

    Attributes:
        columns: which they are.
        layers: the cache's layers that hold them, the first one in front.
        grants: how many times these may still grow in this pass, beside those that were let one by one.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.layers: list[Any] = []
        self.grants = 0
        self._seeing: tuple[Columns, bool] | None = None

    @property
    def sees_all(self) -> bool:
        """Whether a later token sees all keys that are held, so that no mask is needed; found out once."""
        if self._seeing is None or self._seeing[0] is not self.columns:
            self._seeing = self.columns, not bool(self.columns.hidden.any())
        return self._seeing[1]


class _Kept:
    """What a shortened layer does differently; mixed into transformers' own kind of layer."""

    memory: Memory | None
    first: bool
    may_grow: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, if the model that shortened this layer is running."""
        if self.memory is not None and not self.may_grow and not self.memory.grants:
            raise UserError(
                "This KV cache holds a prompt that was pruned inside the language model; continue it with the same model while "
                "it is pruned, or start again without the KV cache."
            )
        if self.memory is not None and not self.may_grow:
            self.memory.grants -= 1
        self.may_grow = False
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self) -> int:
        """How many tokens were read, those included that are gone."""
        held = super().get_seq_length()  # type: ignore[misc]
        return held + self.memory.columns.removed if held and self.memory is not None else held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks are made over all columns; the decoder layers pick theirs."""
        if self.memory is None:
            return super().get_mask_sizes(query_length)  # type: ignore[misc]
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """Forget keys and columns."""
        super().reset()  # type: ignore[misc]
        self.memory = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows, and their columns with them."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take rows, and their columns with them."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._take_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat rows, and their columns with them."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.memory is not None:
            rows = torch.arange(len(self.memory.columns.order))
            self._take_rows(rows.repeat_interleave(repeats))

    def _take_rows(self, index: Tensor) -> None:
        if self.memory is not None and self.first:  # the others share the memory
            self.memory.columns = self.memory.columns.rows(index)


class KeptLayer(_Kept, DynamicLayer):
    """A `DynamicLayer` that holds some columns of a prompt."""


class KeptSlidingLayer(_Kept, DynamicSlidingWindowLayer):
    """A `DynamicSlidingWindowLayer` that holds some columns of a prompt."""


_KINDS: dict[type, type] = {DynamicLayer: KeptLayer, DynamicSlidingWindowLayer: KeptSlidingLayer}


def check_kind(cache: Any, who: str) -> None:
    """Refuse caches whose layers cannot have lengths of their own."""
    kinds = {type(layer) for layer in cache.layers} | {cache.layer_class_to_replicate} - {None}
    if not kinds <= {*_KINDS, *_KINDS.values()}:
        raise UserError(
            f"{who} needs a DynamicCache and cannot work with a {type(cache).__name__}; leave out cache_implementation, or "
            "pass a DynamicCache."
        )


def check_history(cache: Any, who: str) -> None:
    """Refuse to go on from a cache that was begun without pruning, or that was cut down into its prompt."""
    if not hasattr(cache, _KNOWN):
        raise UserError(
            f"This KV cache was made without {who}; pass the whole history with its pictures, without the KV cache."
        )
    for memory in getattr(cache, _KNOWN):
        memory.grants, prompt, read = 0, memory.columns.length, memory.layers[0].get_seq_length()
        if read < prompt:
            raise UserError(
                f"This KV cache was cut down to {read} of the {prompt} tokens of its pruned prompt; "
                "start again without the KV cache."
            )


def hold(cache: Any, index: int, memory: Memory | None, *, first: bool) -> None:
    """Tell layer `index` of an empty cache which columns it is about to hold; None for all."""
    if index == 0 or not hasattr(cache, _KNOWN):
        setattr(cache, _KNOWN, [])  # its memories
    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if memory is None and not isinstance(layer, _Kept):
        return
    if not isinstance(layer, _Kept):
        settings = vars(layer)
        layer = cache.layers[index] = object.__new__(_KINDS[type(layer)])
        vars(layer).update(settings)
    layer.memory, layer.first, layer.may_grow = memory, first, False
    if memory is not None:
        memory.layers.append(layer)
        getattr(cache, _KNOWN).extend([memory] * first)


def let_step(cache: Any) -> bool:
    """Let a cache grow by the next token without a mask, if its layers hold nothing that this token may not see.

    Nothing else of a pruning is then needed in this pass: the stock model's own attention over what is held is the right one.
    """
    memories = getattr(cache, _KNOWN)
    if any(_slides(memory) or not memory.sees_all for memory in memories):
        return False
    for memory in memories:
        memory.grants = len(memory.layers)
    return True


def let_masked_step(cache: Any, mask: Tensor | None) -> Tensor | None:
    """Let a cache grow by the next token under a mask (R, T) over all columns, if all of its layers hide the same ones.

    Args:
        cache: the cache.
        mask: the stock model's mask, (R, T) with the next token, or None.

    Returns:
        That mask, which the stock model cuts to its needs; None where layers differ.
    """
    memories = getattr(cache, _KNOWN)
    if len(memories) != 1 or memories[0].columns.moved or _slides(memories[0]) or len(memories[0].layers) < len(cache.layers):
        return None
    memory = memories[0]
    memory.grants, length = len(memory.layers), memory.layers[0].get_seq_length() + 1
    seen = ~memory.columns.of_keys(length, length)[1]
    return seen.long() if mask is None else seen.to(mask.device).long() * mask.long()


def _slides(memory: Memory) -> bool:
    """Whether some of its layers forget the tokens that leave their window."""
    return any(isinstance(layer, KeptSlidingLayer) for layer in memory.layers)


def held(cache: Any, index: int) -> Columns | None:
    """The columns that layer `index` holds keys of, None for all of them."""
    layer = cache.layers[index] if cache is not None and index < len(cache.layers) else None
    return layer.memory.columns if isinstance(layer, _Kept) and layer.memory is not None else None


def let_grow(cache: Any, index: int, queries: int) -> tuple[int, int]:
    """Let layer `index` grow by `queries` once.

    Returns:
        How many keys it will then attend to, and how many columns there will be.
    """
    layer = cache.layers[index]
    layer.may_grow = True
    keys = layer.keys.shape[-2] if layer.is_initialized and layer.keys.numel() else 0
    window = getattr(layer, "sliding_window", None)
    return (keys if window is None else min(keys, window - 1)) + queries, layer.get_seq_length() + queries
