"""MMTok: patches that cover the words of the question and the picture. Dims: B pictures, N patches, W words, K kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError, UserTypeError
from fastervlm.methods.coverage import Coverage, empty_shares, fill
from fastervlm.methods.covering import covering
from fastervlm.methods.share import check_positive
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits

# Shares in whole steps, so that sums of them are exact: those of a column are at most N * (1 + weight).
_STEPS = 2.0**36


@dataclass(frozen=True)
class MMTok:
    """Keep the patches that cover the words of the question and the picture best, chosen greedily (MMTok, arXiv 2508.18264).

    How far a patch j covers a word m is softmax over j of cos(m, j) / word_temperature, word and patch as the language model
    reads them; how far it covers another patch i, softmax over j of cos(i, j) / temperature, by the tower's features. Each
    further patch is the one that adds most to the mean over words of their best cover, plus `weight` times that over patches;
    of equal ones the earlier. No attention is read, and no text tower is needed. Without words, the default, it is `Coverage`.

    Args:
        words: gives, of some pictures, for each the cosines (W, N) of its question's words to its patches; see `WordLikeness`.
        word_temperature: how sharply the nearest patches count for a word; above 0.
        temperature: the same for a patch.
        weight: how much the picture weighs beside the question; above 0.
    """

    words: Callable[[ScoredPatches], Sequence[Tensor]] | None = None
    word_temperature: float = 0.02
    temperature: float = 0.2
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.words is not None and (isinstance(self.words, type) or not callable(self.words)):
            raise UserTypeError(f"words={self.words!r} must be a function of patches, such as WordLikeness(model, tokenizer).")
        for name in ("word_temperature", "temperature", "weight"):
            check_positive(name, getattr(self, name))

    @property
    def traits(self) -> Traits:
        """It reads the question where it is given words."""
        if self.words is None:
            return Traits(reads=frozenset({"features"}), ordered=True, score_free=True)
        return Traits(reads=frozenset({"features", "question"}), ordered=True, score_free=True)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        total = patches.scores.shape[1]
        if self.words is None:
            return Coverage(self.temperature)(patches, k)
        if k >= total:
            return KeptTokens.top(patches.scores, k)
        given = checked(self.words(patches), patches)
        room = empty_shares(max(map(len, given)) + total, patches.features())  # one for all pictures
        chosen = []
        for words, features in zip(given, patches.features(), strict=True):
            shares = room[: len(words) + total]
            shares[: len(words)] = self._of_words(words.to(features.device))
            fill(shares[len(words) :], features, self.temperature, self.weight * _STEPS)
            chosen.append(covering(shares, k))
        return KeptTokens(torch.stack(chosen).sort(dim=1).values, total)

    def _of_words(self, similar: Tensor) -> Tensor:
        """How far each patch covers each word, given their cosines (W, N): a softmax over each row, in whole steps."""
        count, total = similar.shape
        return (similar.double() / self.word_temperature).softmax(dim=1).mul_(total / max(1, count) * _STEPS).round_()


def checked(words: object, patches: ScoredPatches) -> list[Tensor]:
    """The likeness of words to patches as it was given, refused here if it is not (W, N) for each picture."""
    batch, total = patches.scores.shape
    given = list(words) if isinstance(words, (Sequence, Tensor)) else []
    fits = len(given) == batch and all(isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == total for x in given)
    if not fits:
        raise UserError(f"words must give a tensor (words, {total}) for each of the {batch} pictures.")
    if not all(bool(x.isfinite().all()) for x in given):
        raise UserError("words holds numbers that are infinite or undefined; give finite ones.")
    return [x.detach() for x in given]
