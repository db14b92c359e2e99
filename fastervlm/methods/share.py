"""What settings of methods have in common."""

from __future__ import annotations

import math
import numbers

from encoders import UserError, UserTypeError


def check_share(name: str, share: object) -> None:
    """Refuse what is no share in [0, 1]."""
    if not isinstance(share, numbers.Real) or isinstance(share, bool):
        raise UserTypeError(f"{name}={share!r} is no number; give a share of the tokens, such as 0.5.")
    if not 0 <= share <= 1:  # type: ignore[operator]
        raise UserError(f"{name}={share} is no share in [0, 1].")


def check_count(name: str, count: object) -> None:
    """Refuse what is no count of at least one."""
    if not isinstance(count, numbers.Integral) or isinstance(count, bool):
        raise UserTypeError(f"{name}={count!r} is no whole number; give a count of at least 1.")
    if count < 1:  # type: ignore[operator]
        raise UserError(f"{name}={count} is too small; give a count of at least 1.")


def check_positive(name: str, number: object) -> None:
    """Refuse what is no finite number above 0."""
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        raise UserTypeError(f"{name}={number!r} is no number; give one above 0, such as 1.0.")
    if not 0 < number < math.inf:  # type: ignore[operator]
        raise UserError(f"{name}={number} must be above 0, and finite.")


def check_block(name: str, block: object) -> None:
    """Refuse what names no block of a tower: neither a number from 1 nor a share between 0 and 1."""
    if isinstance(block, bool) or not isinstance(block, (int, float)):
        raise UserTypeError(f"{name}={block!r} names no block; give a number from 1, or a share of the blocks such as 0.25.")
    if not (block >= 1 if isinstance(block, int) else 0 < block < 1):
        raise UserError(f"{name}={block} names no block; give a number from 1, or a share of the blocks between 0 and 1.")
