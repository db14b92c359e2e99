"""How many visual tokens to keep: the same of each picture, or as many as its [CLS] attention asks for.

Dims: S pictures, crops or frames, called rows here; N patches of each.
"""

from __future__ import annotations

import abc
import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, cast

import torch
from torch import Tensor

from encoders import UserError, UserTypeError

BOUND = "at-most-"  # in front of the number of tokens of an `AtMost`
_AT_MOST = re.compile(BOUND + r"([0-9]{1,9})(?:-([0-9]{1,9}|[0-9]*\.[0-9]+))?", re.ASCII)


class Budget(abc.ABC):
    """How many tokens each picture, crop or frame of a call keeps. The method decides which ones.

    Attributes:
        at_most: the most tokens of one row, also where rows share a total; None for no bound.
        of_picture: it is of a whole picture or clip, not of each of its crops or frames.
    """

    at_most: int | None = None
    of_picture: ClassVar[bool] = False

    @property
    def reads_scores(self) -> bool:
        """Whether scores decide how many tokens stay."""
        return True

    @abc.abstractmethod
    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """How many tokens to keep of each row.

        Args:
            scores: (S, N) float32 [CLS] attention; -inf at patches that do not take part.
            areas: for each row, how many of its patches take part.
            groups: how many rows each picture or clip has, in their order; S together.
        """

    @staticmethod
    def of(keep: int | float | Budget) -> Budget:
        """A budget as it is; a count or a fraction as a `TokenBudget`."""
        return keep if isinstance(keep, Budget) else TokenBudget(keep)


@dataclass(frozen=True)
class TokenBudget(Budget):
    """The same number of visual tokens for every picture: a count, or a fraction of its N patches.

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

    @property
    def reads_scores(self) -> bool:
        """Never."""
        return False

    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """The same number of each row, of which a fraction is one of all N patches, but never more than take part."""
        count = self.resolve(scores.shape[1])
        return [min(count, area) for area in areas]

    def resolve(self, num_patches: int) -> int:
        """The number of tokens to keep of `num_patches`, between 1 and `num_patches`."""
        if isinstance(self.keep, numbers.Integral):
            return min(int(self.keep), num_patches)
        fraction = 1 - float(self.pruning_rate) if self.keep is None else float(self.keep)  # type: ignore[arg-type]
        # The nudge heals 0.5 that came out as 0.49999999 of 1 - rate.
        return max(1, min(num_patches, math.floor(num_patches * fraction + 0.5 + 1e-9)))

    def __str__(self) -> str:
        return f"keep={self.keep}" if self.keep is not None else f"pruning_rate={self.pruning_rate}"


@dataclass(frozen=True)
class Mass(Budget):
    """The fewest tokens that hold a share of the [CLS] attention, in each picture, crop or frame for itself: at least one.

    The share is of the attention that all its patches get together, without [CLS] itself; a billionth of it may be missing.
    A picture whose attention is spread out keeps many tokens, one with a single bright spot keeps few. So the pictures of a
    batch may keep unequal numbers.

    Args:
        share: in (0, 1].
        at_most: the most tokens of a picture, crop or frame, also where crops or frames share a total.
    """

    share: float
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.share, numbers.Real):
            raise UserTypeError(f"Mass({self.share!r}) is no number; give the share of attention to keep, such as 0.9.")
        if not 0 < self.share <= 1:
            raise UserError(f"Mass({self.share}) is no share in (0, 1]; 0.9 keeps the tokens that hold 90 % of the attention.")
        _check_count("at_most", self.at_most)

    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """The smallest k whose k highest scores sum to the share of all."""
        held = scores.cpu().double().clamp(min=0).sort(dim=1, descending=True).values.cumsum(dim=1)
        # A billionth less, so that 9 of 10 equal scores hold a share of 0.9 whatever way the sums were rounded.
        fewer = (held < self.share * held[:, -1:] * (1 - 1e-9)).sum(dim=1)
        return _bounded((fewer + 1).tolist(), areas, self.at_most)


@dataclass(frozen=True)
class Total(Budget):
    """A number of tokens for a whole picture or clip. Its crops or frames share it by score; for a single crop it is a count.

    Args:
        tokens: at least one.
    """

    of_picture: ClassVar[bool] = True

    tokens: int

    def __post_init__(self) -> None:
        _check_count("Total", self.tokens)
        if self.tokens is None:
            raise UserTypeError("Total(None) is no whole number; give the tokens of a picture or clip, such as 290.")

    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """How many of the highest scores of a picture or clip lie in each of its rows; of equal scores the earlier count."""
        if len(groups) == len(areas):
            return [min(self.tokens, area) for area in areas]
        return shared(scores, areas, groups, [self.tokens] * len(groups))


@dataclass(frozen=True)
class AtMost(Budget):
    """Never more than so many visual tokens of a picture or clip, whatever its size; below that what `keep` says.

    | spelling            | of a picture of 100 tokens | of one of 4000      |
    |---------------------|----------------------------|---------------------|
    | `AtMost(256)`       | 100                        | 256                 |
    | `AtMost(256, 0.1)`  | 10                         | 256                 |
    | `AtMost(256, 58)`   | 58                         | 58                  |

    The crops of a picture, or the frames of a clip, share its tokens in proportion to what `keep` gives each: whole tokens,
    the largest remainders first, of equal ones the earlier crop's. So no scores are needed. Newline tokens are not counted.

    Args:
        tokens: at least one.
        keep: what each picture, crop or frame keeps otherwise: a count, a fraction or a budget; all of it if left out.
    """

    of_picture: ClassVar[bool] = True

    tokens: int
    keep: int | float | Budget = 1.0

    @classmethod
    def read(cls, text: str) -> AtMost:
        """From "at-most-256" or "at-most-256-0.1", as it is typed and as protocols write it down.

        Raises:
            UserError: it is written otherwise, or a number is out of its range.
        """
        found = _AT_MOST.fullmatch(text.strip())
        if found is None:
            raise UserError(f"{text!r} is no bound; write at-most-256, or at-most-256-0.1 for a tenth of at most 256.")
        tokens, keep = int(found[1]), found[2]
        return cls(tokens) if keep is None else cls(tokens, float(keep) if "." in keep else int(keep))

    def __post_init__(self) -> None:
        _check_count("AtMost", self.tokens)
        if self.tokens is None:
            raise UserTypeError("AtMost(None) is no whole number; give the most tokens of a picture or clip, such as 256.")
        object.__setattr__(self, "keep", Budget.of(self.keep))

    @property
    def budget(self) -> Budget:
        """What holds below the bound."""
        return cast(Budget, self.keep)

    @property
    def at_most(self) -> int | None:  # type: ignore[override]
        """That of `keep`."""
        return self.budget.at_most

    @property
    def reads_scores(self) -> bool:
        """Whether `keep` does."""
        return self.budget.reads_scores

    def __str__(self) -> str:
        inner = self.budget
        if inner == TokenBudget(1.0):
            return f"{BOUND}{self.tokens}"
        if isinstance(inner, TokenBudget) and inner.keep is not None:
            return f"{BOUND}{self.tokens}-{Decimal(str(inner.keep)):f}"
        return repr(self)

    def resolve(self, num_patches: int) -> int:
        """The number of tokens to keep of a picture of `num_patches` that is in one piece.

        Raises:
            UserError: `keep` goes by scores.
        """
        if not isinstance(self.budget, TokenBudget):
            raise UserError(f"{self} depends on what pictures show; give a count or a fraction below the bound.")
        return min(self.tokens, self.budget.resolve(num_patches))

    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """What `keep` gives, cut down picture by picture."""
        given, counts = iter(self.budget.counts(scores, areas, groups)), list[int]()
        for rows in groups:
            counts += cut_down([next(given) for _ in range(rows)], self.tokens)
        return counts


def cut_down(counts: Sequence[int], most: int) -> list[int]:
    """Counts of no more than `most` together, in proportion to those given: largest remainders first, then the earlier."""
    total = sum(counts)
    if total <= most:
        return list(counts)
    whole = [count * most // total for count in counts]
    order = sorted(range(len(counts)), key=lambda row: -(counts[row] * most % total))
    for row in order[: most - sum(whole)]:
        whole[row] += 1
    return whole


@dataclass(frozen=True)
class Outliers(Budget):
    """As many tokens as have outstanding [CLS] attention: more than 1.5 interquartile ranges above the upper quartile.

    At least one. Source: LLaVA-PruMerge, arXiv 2403.15388, its adaptive number of tokens; `PruMerge` merges the rest into them.

    Args:
        at_most: the most tokens of a picture, crop or frame.
    """

    at_most: int | None = None

    def __post_init__(self) -> None:
        _check_count("at_most", self.at_most)

    def counts(self, scores: Tensor, areas: Sequence[int], groups: Sequence[int]) -> list[int]:
        """How many scores lie above the fence, of the patches that take part."""
        found = [_above_fence(row[row > -math.inf]) for row in scores.cpu().double()]
        return _bounded(found, areas, self.at_most)


def shared(scores: Tensor, areas: Sequence[int], groups: Sequence[int], totals: Sequence[int]) -> list[int]:
    """How many of the `totals` highest scores of each group of rows lie in each row; the other arguments as for `counts`."""
    rows: list[Tensor] = []
    places = iter(areas)
    for part, total in zip(scores.split(list(groups)), totals, strict=True):
        limit = min(total, sum(next(places) for _ in range(len(part))))
        order = part.flatten().sort(descending=True, stable=True).indices[:limit]
        rows.append(torch.bincount(order // scores.shape[1], minlength=len(part)))
    return torch.cat(rows).tolist()


def _above_fence(scores: Tensor) -> int:
    if not len(scores):
        return 0
    low, high = scores.quantile(torch.tensor([0.25, 0.75], dtype=scores.dtype)).tolist()
    return int((scores > high + 1.5 * (high - low)).sum())


def _bounded(counts: Sequence[int], areas: Sequence[int], at_most: int | None) -> list[int]:
    """Counts of at least one, where there is one, and not above `at_most`."""
    most = math.inf if at_most is None else at_most
    return [int(min(max(count, 1), area, most)) for count, area in zip(counts, areas, strict=True)]


def _check_count(name: str, count: object) -> None:
    if count is None:
        return
    if not _is_number(count, numbers.Integral):
        raise UserTypeError(f"{name}={count!r} is no whole number; give a count of tokens such as 144.")
    if count < 1:  # type: ignore[operator]
        raise UserError(f"{name}={count} would leave no visual token; give a count of at least 1.")


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
