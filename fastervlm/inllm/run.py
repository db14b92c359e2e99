"""One forward pass of a model that is pruned inside its language model.

The pass begins in front of the model that merges pictures and text, travels through it as a keyword argument, meets every
decoder layer, and ends behind the language model. Nothing of it is global, so that passes in several threads do not meet.

Dims: R rows, T columns of the prompt, L columns left, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fastervlm.generation.kv_cache import cache_in
from fastervlm.inllm.attention_row import attention_row
from fastervlm.inllm.cache import Memory, held, hold, let_grow
from fastervlm.inllm.columns import Columns, causal_mask, take, take_mask
from fastervlm.inllm.prompt import Prompt
from fastervlm.inllm.select import choose_columns
from fastervlm.selection.budget import TokenBudget

RUN = "fastervlm_run"


class Run:
    """The state of one forward pass.

    Attributes:
        handles: what prunes, by layer.
        prompt: what the pass reads; None when it goes on from a KV cache, which remembers what was kept.
        flash: whether masks are those of flash attention, (R, L) over keys.
    """

    def __init__(self, handles: Mapping[int, Any], prompt: Prompt | None, *, flash: bool) -> None:
        self.handles = handles
        self.prompt = prompt
        self.flash = flash
        self._rows: dict[int, Tensor] = {}  # attention of the last token, (R, L), by the layer in front of which it is used
        self._columns: dict[int, Columns] = {}
        self._places: dict[
            int, Tensor | None
        ] = {}  # for a layer that drops, where the kept states stand among those that come in
        self._memory: Memory | None = None
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    def columns(self, layer: int) -> Columns | None:
        """The columns of the prompt that a layer works on; None for all of them, with nothing hidden but pads."""
        changed = [at for at in self._columns if at <= layer]
        return self._columns[max(changed)] if changed else None

    def enter(self, layer: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a decoder layer: its input (R, T, D) with masks and positions, as this pass has them there."""
        states, index, mask = args[0], layer.self_attn.layer_idx, inputs.get("attention_mask")
        cache = cache_in(inputs)
        if self.prompt is None:
            columns = held(cache, index)
            if columns is not None:
                keys, length = let_grow(cache, index, states.shape[1])
                inputs["attention_mask"] = self._mask(mask, columns, keys, length, states.shape[1])
            return args, inputs
        states = self._prune(self.prompt, index, states)
        columns = self.columns(index)
        if columns is not None:
            inputs.update(self._short_inputs(columns, inputs))
        if cache is not None:
            self._hold(self.prompt.guesses, cache, index, columns, states.shape[1])
        if index + 1 in self.handles and self.handles[index + 1].method.reads_attention:
            self._rows[index + 1] = self._row(self.prompt, layer, states, columns, inputs)
        return (states, *args[1:]), inputs

    def _prune(self, prompt: Prompt, index: int, states: Tensor) -> Tensor:
        """Choose in front of this layer if it is time to, and take what is dropped out of its input."""
        if index in self.handles and index not in self._places:
            before, row = self.columns(index - 1), self._rows.get(index)
            handle = self.handles[index]
            after, self._places[index], handle.trace = choose_columns(
                handle.method, cast(TokenBudget, handle.budget), prompt, states.detach(), before, row
            )  # prune refuses other budgets here
            if after is not None:
                self._columns[index] = after
        place = self._places.get(index)
        return states if place is None else take(states, place)

    def _short_inputs(self, columns: Columns, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mask and rotary embedding for the columns that are left. Position ids go: flash attention takes gaps for borders."""
        left = columns.order.shape[1]
        short: dict[str, Any] = {"attention_mask": self._mask(inputs.get("attention_mask"), columns, left, columns.length, 0)}
        if columns.moved:
            short["position_ids"] = None
            short["position_embeddings"] = tuple(take(part, columns.order) for part in inputs["position_embeddings"])
        return short

    def _mask(self, mask: Tensor | None, columns: Columns, keys: int, length: int, queries: int) -> Tensor | None:
        """The mask over `keys` keys; for `queries` new tokens, or for the whole prompt at 0. Made once for all alike layers."""
        if mask is None and not columns.blind:
            return None
        name = (id(mask), id(columns), keys)
        if name not in self._masks:
            order, hidden = columns.of_keys(keys, length)
            asking = order[:, order.shape[1] - queries :] if queries else order
            if mask is not None:
                self._masks[name] = take_mask(mask, order, hidden, asking if not queries else None, length)
            elif self.flash:
                self._masks[name] = ~hidden
            else:
                self._masks[name] = causal_mask(order, hidden, asking)
        return self._masks[name]

    def _hold(self, guesses: int, cache: Any, index: int, columns: Columns | None, queries: int) -> None:
        """Tell a layer of the cache which columns it is about to hold. Layers with the same ones share their memory."""
        if columns is None:
            hold(cache, index, None, first=False)
            return
        if index in self._columns:
            self._memory = Memory(columns.before(guesses))
        hold(cache, index, self._memory, first=index in self._columns)
        let_grow(cache, index, queries)

    @staticmethod
    def _row(prompt: Prompt, layer: Any, states: Tensor, columns: Columns | None, inputs: dict[str, Any]) -> Tensor:
        """The attention of the prompt's last token in this layer, (R, L), over what its mask lets it see."""
        columns = Columns.all(prompt.real) if columns is None else columns
        last, mask = prompt.last[:, None], inputs.get("attention_mask")
        place = ((columns.order == last) & ~columns.hidden).long().argmax(dim=1)
        if mask is not None and mask.dim() == 4:
            row = mask[torch.arange(len(mask), device=mask.device), 0, place.to(mask.device)]
            visible = row if row.dtype == torch.bool else row == 0
        else:
            visible = (columns.order <= last) & ~columns.hidden
        return attention_row(layer, states, place, inputs["position_embeddings"], visible)

    def finish(self, output: Any) -> Any:
        """The language model's output with states (R, T, D) as long as the prompt, zero where a token was dropped."""
        if self.prompt is None:
            return output
        together = [handle.trace for handle in self.handles.values()]
        for handle in self.handles.values():
            handle.together = together
        layers = max(self._columns, default=0)
        output.last_hidden_state = self._whole(output.last_hidden_state, layers)
        states = output.get("hidden_states")
        if states is not None:
            output["hidden_states"] = tuple(self._whole(x, max(i - 1, 0)) for i, x in enumerate(states))
        return output

    def _whole(self, states: Tensor | None, layer: int) -> Tensor | None:
        columns = self.columns(layer)
        return states if states is None or columns is None or not columns.moved else columns.spread(states)
