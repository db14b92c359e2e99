"""How many visual tokens to keep, in the three ways people say it."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from encoders import UserError, UserTypeError


@dataclass(frozen=True)
class TokenBudget:
    """A number of visual tokens per picture, resolved once the number of patches N is known.

    | spelling                     | of 576 patches |
    |------------------------------|----------------|
    | `TokenBudget(58)`            | 58             |
    | `TokenBudget(0.1)`           | 58             |
    | `TokenBudget(pruning_rate=0.9)` | 58          |

    Fractions are rounded to the nearest whole token (halves up), as the papers' counts are, and never below one token. A
    count above N keeps all N.

    Args:
        keep: a whole number, the count to keep; or a float in (0, 1], the fraction to keep. `1` is one token, `1.0` all.
        pruning_rate: the fraction to remove, in [0, 1); instead of `keep`.

    Raises:
        UserError: a value out of its range, or both or neither given.
        UserTypeError: something that is no number.
    """

    keep: int | float | None = None
    pruning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.pruning_rate is None):
            raise UserError("A token budget needs either keep or pruning_rate, and not both.")
        if self.keep is not None:
            _check_keep(self.keep)
        else:
            _check_rate(self.pruning_rate)

    @classmethod
    def of(cls, keep: int | float | TokenBudget) -> TokenBudget:
        """`keep` itself if it is a budget already, else the budget it spells."""
        return keep if isinstance(keep, TokenBudget) else cls(keep)

    def resolve(self, num_patches: int) -> int:
        """The number of tokens to keep of `num_patches`, between 1 and `num_patches`."""
        if isinstance(self.keep, numbers.Integral):
            return min(int(self.keep), num_patches)
        fraction = 1 - float(self.pruning_rate) if self.keep is None else float(self.keep)  # type: ignore[arg-type]
        # The nudge heals 0.5 that came out as 0.49999999 of 1 - rate.
        return max(1, min(num_patches, math.floor(num_patches * fraction + 0.5 + 1e-9)))

    def __str__(self) -> str:
        return f"keep={self.keep}" if self.keep is not None else f"pruning_rate={self.pruning_rate}"


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_keep(keep: object) -> None:
    if _is_number(keep, numbers.Integral):
        if keep < 1:  # type: ignore[operator]
            raise UserError(f"keep={keep} would leave no visual token; give a count of at least 1.")
    elif _is_number(keep, numbers.Real):
        if not 0 < keep <= 1:  # type: ignore[operator]
            raise UserError(f"keep={keep} is no fraction in (0, 1]; give a whole number to keep a count of tokens.")
    else:
        raise UserTypeError(f"keep={keep!r} is no number; give a count such as 58 or a fraction such as 0.1.")


def _check_rate(rate: object) -> None:
    if not _is_number(rate, numbers.Real):
        raise UserTypeError(f"pruning_rate={rate!r} is no number; give the fraction to remove, such as 0.9.")
    if not 0 <= rate < 1:  # type: ignore[operator]
        raise UserError(f"pruning_rate={rate} is outside [0, 1); 0.9 removes 90 % of the visual tokens.")
