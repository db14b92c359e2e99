"""What was kept of the visual tokens of a prompt, inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastervlm.selection.trace import Trace


@dataclass(frozen=True, eq=False)
class TokenTrace(Trace):
    """One prompt of the last call that was pruned inside the language model. Dims: n visual tokens of all its pictures, K kept.

    Visual tokens that the caller's attention_mask hides are none of the n: neither scores nor index count them.

    Attributes:
        scores: (n,) float32, what the method ranked by; 0 for tokens that were gone already.
        index: (K,) int64, the kept tokens among the n visual tokens of the prompt, ascending.
        layer: the first layer that sees these only.
    """

    scores: Tensor
    index: Tensor
    layer: int

    @property
    def num_tokens(self) -> int:
        """How many visual tokens that layer and all behind it see."""
        return len(self.index)


def mean_tokens(traces: Sequence[TokenTrace], layers: int) -> float:
    """How many visual tokens a layer of the language model sees on average.

    Args:
        traces: of one prompt, one for each layer in front of which it was pruned.
        layers: how many layers there are.
    """
    ordered = sorted(traces, key=lambda trace: trace.layer)
    seen, total, at = len(ordered[0].scores), 0, 0
    for trace in ordered:
        total += seen * (trace.layer - at)
        seen, at = trace.num_tokens, trace.layer
    return (total + seen * (layers - at)) / layers
