"""Which blocks of a tower are meant: of which features are taken, and of which scores are asked besides."""

from __future__ import annotations

from collections.abc import Sequence

from encoders.errors import UserError, UserTypeError


def depths(select_layer: int | Sequence[int], layers: int, scored: bool = True) -> tuple[int, ...]:
    """Number of blocks below each selected hidden state, 0 for the embeddings, in the order given.

    `select_layer` counts as transformers' `hidden_states` does, which has one entry more than the tower has blocks: -2 is
    the output of the last block but one. With `scored` the deepest must be a block, whose attention gives the scores.
    """
    wanted = [select_layer] if isinstance(select_layer, int) else select_layer
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not all(type(k) is int for k in wanted):
        raise UserTypeError(f"select_layer must be a whole number or a list of them, not {select_layer!r}.")
    for k in wanted:
        if not -layers - 1 <= k <= layers:
            raise UserError(f"select_layer={k} is out of range: this tower has {layers} layers, so {-layers} to {layers} fit.")
    found = tuple(k % (layers + 1) for k in wanted)
    if not found or (scored and not any(found)):
        raise UserError(
            f"select_layer={select_layer} names no layer with attention to score by; "
            f"choose one of the tower's {layers} layers, 1 to {layers} or {-layers} to -1."
        )
    return found


def block_of(name: int | float, blocks: int, deepest: int) -> int:
    """The block that a name means, counted from 1, of a tower of so many, features being taken from block `deepest`.

    Raises:
        UserError: there is no such block.
        UserTypeError: it is no number.
    """
    if isinstance(name, bool) or not isinstance(name, (int, float)):
        raise UserTypeError(f"also={name!r} names no block; give a number from 1, or a share of the blocks such as 0.25.")
    if isinstance(name, float) and 0 < name < 1:
        return max(1, min(deepest, int(name * blocks + 0.5)))
    if isinstance(name, float) or not 1 <= name <= deepest:
        raise UserError(
            f"There is no block {name} in front of the features, which are taken from block {deepest} of {blocks}; give 1 to "
            f"{deepest}, or a share of the blocks between 0 and 1."
        )
    return name
