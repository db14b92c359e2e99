"""What a paired comparison shows of a loss: an upper bound that holds at every moment a search may stop at.

The bound is that of betting: a gambler who bets that the loss is below `m` multiplies his money at each picture by
`1 + b * (m * questions - loss)`, which is a fair game or a losing one if the loss is `m` or more. He then has 20 times what he
began with in at most one of twenty worlds, however long he plays and whenever he stops (Ville's inequality). No distribution is
assumed; that pictures were drawn at random and in random order is. Source: Waudby-Smith and Ramdas, Estimating means of bounded
random variables by betting, arXiv 2010.09686. Questions about one picture are one draw.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BETS = 8  # how boldly, each half of the one before; the money is parted among them
_BOLDEST = 0.95  # of what would lose all money at one picture
_STEPS = 40


@dataclass(frozen=True, eq=False)
class Losses:
    """What one way loses against another, by picture, in the order of asking.

    Attributes:
        lost: (n,) sums over the questions of a picture; each question loses -1 to 1.
        questions: (n,) how many questions each picture has.
        largest: the most questions that any picture has, known before one is asked.
    """

    lost: np.ndarray
    questions: np.ndarray
    largest: int

    @classmethod
    def of(cls, by_picture: Sequence[Sequence[float]], largest: int) -> Losses:
        """From the losses of the questions of each picture."""
        lost, counts = [sum(each) for each in by_picture], [len(each) for each in by_picture]
        return cls(np.array(lost, dtype=float), np.array(counts, dtype=float), largest)

    @property
    def mean(self) -> float:
        """The mean loss of a question."""
        return float(self.lost.sum() / self.questions.sum()) if len(self.lost) else 0.0

    def shows_below(self, most: float, confidence: float) -> bool:
        """Whether at some moment so far it was shown, with that confidence, that the mean loss is below `most`."""
        if not len(self.lost) or most >= 1:
            return most >= 1
        return self._wealth(most) >= 1 / (1 - confidence)

    def bound(self, confidence: float) -> float:
        """The least loss that is shown, with that confidence, not to be reached; 1 if nothing is shown."""
        low, high = max(-1.0, self.mean), 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.shows_below(middle, confidence) else (middle, high)
        return high

    def _wealth(self, most: float) -> float:
        """The most that a gambler who began with 1 had at any time."""
        worth = most * self.questions - self.lost  # at least (most - 1) * the most questions of a picture
        boldest = _BOLDEST / ((1 - most) * self.largest)
        bets = boldest * 0.5 ** np.arange(_BETS)
        grown = np.cumsum(np.log1p(bets[:, None] * worth[None]), axis=1)
        return math.exp(min(700.0, float(np.logaddexp.reduce(grown, axis=0).max()) - math.log(_BETS)))


def pictures_needed(most: float, confidence: float) -> int:
    """How many pictures with equally many questions it takes to show that less than `most` is lost, if nothing is."""
    enough = math.ceil((math.log(1 / (1 - confidence)) + math.log(_BETS)) / math.log1p(_BOLDEST * most / (1 - most)))

    def shows(count: int) -> bool:
        return Losses(np.zeros(count), np.ones(count), 1).shows_below(most, confidence)

    return bisect.bisect_left(range(enough + 1), x=True, key=shows)
