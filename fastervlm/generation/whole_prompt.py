"""What users see of a prompt while `generate` runs on the pruned one: the unpruned prompt, everywhere.

Streamers, stopping criteria, logits processors and prefix functions are handed token ids. The stock loop has those of the
pruned prompt; here the unpruned prompt is put in their place. So lengths that users set count the unpruned prompt, and
processors of transformers that read the prompt (repetition, n-grams, banned words) do what they do without pruning.

Dims: R rows, T columns of the unpruned prompt, L columns of the pruned one.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from fastervlm.generation.host import Host
from fastervlm.generation.running import current
from fastervlm.generation.splice import Splice


class Streamer:
    """A streamer that is shown the unpruned prompt first, as without pruning."""

    def __init__(self, streamer: Any, splice: Splice) -> None:
        self.streamer, self.splice, self.first = streamer, splice, True

    def put(self, value: Tensor) -> None:
        """Pass tokens on; the first that come are the prompt."""
        self.streamer.put(self.splice.for_rows(len(value)).ids.cpu() if self.first else value)
        self.first = False

    def end(self) -> None:
        """Pass the end on."""
        self.streamer.end()


class Processors(LogitsProcessorList):
    """Logits processors that see the unpruned prompt in front of what was generated."""

    splice: Splice

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Change scores (R, V), given input_ids (R, L + new)."""
        return super().__call__(self.splice.restore(input_ids), scores, **kwargs) if self else scores  # type: ignore[arg-type]


class Criteria(StoppingCriteriaList):
    """Stopping criteria that see the unpruned prompt in front of what was generated."""

    splice: Splice

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row is done, (R,), given input_ids (R, L + new)."""
        return super().__call__(self.splice.restore(input_ids), scores, **kwargs)  # type: ignore[arg-type]

    @property
    def max_length(self) -> int | None:
        """The longest sequence, as the loop counts it: with the pruned prompt."""
        longest = super().max_length
        return None if longest is None else longest - self.splice.removed


def get_logits_processor(host: Host, call: dict[str, Any]) -> Any:
    """`model._get_logits_processor(**call)`, for a prompt of its whole length."""
    running = current(host)
    if running is None or running.splice is None:
        return host.original("_get_logits_processor")(**call)
    splice = running.splice
    whole = {"input_ids_seq_length": splice.ids.shape[1], "encoder_input_ids": splice.ids}
    config = with_whole_lengths(call["generation_config"], splice)
    found = Processors(host.original("_get_logits_processor")(**call | whole | {"generation_config": config}))
    found.splice = splice
    return found


def get_stopping_criteria(host: Host, call: dict[str, Any]) -> Any:
    """`model._get_stopping_criteria(**call)`, for a prompt of its whole length."""
    running = current(host)
    if running is None or running.splice is None:
        return host.original("_get_stopping_criteria")(**call)
    config = with_whole_lengths(call["generation_config"], running.splice)
    found = Criteria(host.original("_get_stopping_criteria")(**call | {"generation_config": config}))
    found.splice = running.splice
    return found


def with_whole_lengths(config: Any, splice: Splice) -> Any:
    """A generation config whose lengths, which count the pruned prompt, count the unpruned one."""
    whole = copy.copy(config)
    for name in ("max_length", "min_length"):
        if getattr(config, name):
            setattr(whole, name, getattr(config, name) + splice.removed)
    return whole
