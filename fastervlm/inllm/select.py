"""Choosing the visual tokens that stay, in front of one layer.

Dims: R rows, T columns of the prompt, L columns left so far, n visual tokens of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastervlm.generation.splice import line_up
from fastervlm.inllm.columns import Columns
from fastervlm.inllm.method import InLLM
from fastervlm.inllm.prompt import Prompt
from fastervlm.inllm.trace import TokenTrace
from fastervlm.selection.budget import TokenBudget


@torch.no_grad()
def choose_columns(
    method: InLLM, budget: TokenBudget, prompt: Prompt, states: Tensor, before: Columns | None, row: Tensor | None
) -> tuple[Columns | None, Tensor | None, list[TokenTrace]]:
    """Choose in front of `method.layer`.

    Args:
        method: by what.
        budget: how many visual tokens of each row stay.
        prompt: what is read.
        states: (R, L, D), the input of the layer.
        before: the columns (R, L) that come in, None for all.
        row: (R, L), the attention of the prompt's last token in the layer before, if the method reads it.

    Returns:
        The columns that stay, None if nothing was ever taken out; if states have to be gathered, their places (R, L'); and a
        trace for each row.
    """
    now = Columns.all(prompt.real) if before is None else before
    ranking, scores = (x.to(now.order.device) for x in method.rank(prompt, states, now, row))
    candidates = _at(method.candidates(prompt.visual), now) & ~now.hidden
    lost = candidates & ~_best(ranking, candidates, now.order == prompt.last[:, None], _counts(budget, prompt.visual))
    after, place = before, None
    if bool(lost.any()):
        if method.mode == "mask":
            after = Columns(now.order, now.hidden | lost, now.length, now.moved, blind=True)
        else:
            place, filler = line_up(~(now.hidden | lost), right=prompt.right)
            after = Columns(now.order.gather(1, place), filler, now.length, moved=True, blind=bool(filler.any()))
    return after, place, _traces(method.layer, prompt.visual, now, scores, now if after is None else after)


def _at(flags: Tensor, columns: Columns) -> Tensor:
    """Flags (R, T) of the prompt at the columns that are left, (R, L)."""
    return flags.gather(1, columns.order)


def _counts(budget: TokenBudget, visual: Tensor) -> Tensor:
    """(R, 1) how many visual tokens each row keeps."""
    found = visual.sum(dim=1).tolist()
    return torch.tensor([[budget.resolve(n) if n else 0] for n in found], device=visual.device)


def _best(ranking: Tensor, candidates: Tensor, last: Tensor, count: Tensor) -> Tensor:
    """(R, L) bool: the `count` (R, 1) best candidates of each row, ties to the earlier; always with the last token."""
    worth = ranking.masked_fill(~candidates, float("-inf")).masked_fill(candidates & last, float("inf"))
    order = worth.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return candidates & (rank < count)


def _traces(layer: int, visual: Tensor, now: Columns, scores: Tensor, after: Columns) -> list[TokenTrace]:
    """One for each row: the scores of its visual tokens, zero for those that were gone already, and which stay."""
    shown = scores.new_zeros(visual.shape).scatter_add(1, now.order, scores.masked_fill(now.hidden, 0))
    stays = torch.zeros_like(visual, dtype=torch.long).scatter_add(1, after.order, (~after.hidden).long()) > 0
    return [
        TokenTrace(marks[row], kept[row].nonzero().flatten(), layer)
        for marks, kept, row in zip(shown, stays, visual, strict=True)
    ]
