"""The one way from scored patches to what stays of each picture, crop or frame, for every kind of model.

Dims: S pictures, crops or frames of a call, called rows here; N patches of each; C tower width, D language model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError
from encoders.base import changed, token_rows
from fastervlm.selection.budget import Budget, shared
from fastervlm.selection.kept import KeptTokens, check_kept, mixed, waits
from fastervlm.selection.method import Method, traits

Window = tuple[int, int, int, int]  # top, bottom, left, right; the second of each pair excluded


@dataclass(frozen=True, eq=False)
class Choice:
    """What was kept of each row; unlike in `KeptTokens`, rows may keep unequal numbers.

    Attributes:
        patches: what was chosen among; its features are computed once, however often they are asked for.
        mask: (S, N) bool, true where a patch was kept.
        counts: how many of each row.
        weights: (S, max(counts), N) where kept tokens are mixtures, as in `KeptTokens`; rows beyond a count are zero.
        everything: all patches that take part are kept, as they are.
        projected: as in `KeptTokens`.
    """

    patches: ScoredPatches
    mask: Tensor
    counts: list[int]
    weights: Tensor | None
    everything: bool
    projected: bool = False

    @property
    def index(self) -> Tensor:
        """(S, max(counts)) int64, the kept patches of each row, ascending; behind a smaller count any others."""
        return self.mask.long().argsort(dim=1, descending=True, stable=True)[:, : max(self.counts)]

    def kept(self) -> KeptTokens:
        """The same as one `KeptTokens`.

        Raises:
            UserError: rows keep unequal numbers.
        """
        least, most = min(self.counts), max(self.counts)
        if least < most:
            raise UserError(
                f"Of these pictures {least} to {most} tokens are kept, which do not fit into one tensor; prune one at a time."
            )
        return KeptTokens(self.index, self.mask.shape[1], weights=self.weights, projected=self.projected)

    def project(self, projector: Callable[[Tensor], Tensor], *, cls: bool = False) -> tuple[Tensor, Tensor]:
        """All kept tokens, projected (R, D), and for each patch its row there, (S, N); rows of dropped patches mean nothing.

        The tokens of a row stand in raster order, row after row, with [CLS] in front where `cls` asks for it. Without windows
        `split(counts)` parts them. Where everything that takes part is kept, all S * N patches go through as in the stock
        model, and so with its rounding.
        """
        taken = torch.ones_like(self.mask) if self.everything else self.mask
        before = torch.arange(1, len(taken) + 1, device=taken.device)[:, None] if cls else 0
        number = (taken.flatten().long().cumsum(0) - 1).clamp(min=0).view_as(taken) + before
        if self.projected:
            return self._pooled(projector(self.patches.features(cls=cls)), cls), number
        table = self.patches.features(cls=cls) if self.everything else self._rows(cls)
        return projector(table).flatten(0, -2), number

    def _pooled(self, table: Tensor, cls: bool) -> Tensor:
        """The kept tokens (R, D), mixtures of a table (S, N, D) of all projected patches, behind [CLS] where it is in front."""
        rows = mixed(self.weights, table[:, int(cls) :])  # type: ignore[arg-type]
        rows = torch.cat((table[:, : int(cls)], rows), dim=1)
        if min(self.counts) == max(self.counts):
            return rows.flatten(0, 1)
        stays = F.pad(self.mask.gather(1, self.index), (int(cls), 0), value=True)
        return rows[stays.to(rows.device)]

    def _rows(self, cls: bool) -> Tensor:
        """The kept tokens (S, K, C), or (R, C) where rows keep unequal numbers."""
        index = self.index
        if min(self.counts) == max(self.counts):
            return self.kept().rows(self.patches, cls=cls)
        if self.weights is None:
            rows = self.patches.features(index, cls=cls)
        else:
            rows = KeptTokens(index, self.mask.shape[1], weights=self.weights).rows(self.patches, cls=cls)
        stays = F.pad(self.mask.gather(1, index), (int(cls), 0), value=True)
        return rows[stays.to(rows.device)]


def counts_for(
    budget: Budget,
    scores: Tensor,
    *,
    grid: tuple[int, int] = (0, 0),
    windows: Sequence[Window] | None = None,
    groups: Sequence[int] | None = None,
    pool: bool = False,
) -> list[int]:
    """How many tokens each row keeps under a budget.

    Args:
        budget: how many.
        scores: (S, N) float32, the [CLS] attention.
        grid: rows and columns of the patches, where there are windows.
        windows: for each row, the patches that take part; all of them without it.
        groups: how many rows each picture or clip has, in their order; one without it.
        pool: let the rows of a group share by score what the budget gives them together.

    Raises:
        UserError: scores are not finite; not looked for where that would wait for a device.
    """
    areas, groups = [scores.shape[1]] * len(scores), groups or [1] * len(scores)
    _refuse_what_is_no_number(scores, groups, "picture" if len(groups) == len(scores) else "picture or clip")
    if windows is not None:
        areas, outside = [_area(window) for window in windows], torch.ones_like(scores, dtype=torch.bool)
        for row, window in enumerate(windows):
            outside[row, _places(grid, window).to(scores.device)] = False
        scores = scores.masked_fill(outside, -torch.inf)
    counts = budget.counts(scores, areas, groups)
    if not pool:
        return counts
    given = iter(counts)
    counts = shared(scores, areas, groups, [sum(next(given) for _ in range(rows)) for rows in groups])
    return counts if budget.at_most is None else [min(count, budget.at_most) for count in counts]


def _refuse_what_is_no_number(scores: Tensor, groups: Sequence[int], noun: str) -> None:
    """Refuse scores (S, N), or features (S, N, C), that are not finite and name the group whose rows they are."""
    if waits(scores) or bool(scores.isfinite().all()):
        return
    bad = [not bool(part.isfinite().all()) for part in scores.split(list(groups))]
    raise UserError(not_finite(noun, bad.index(True), len(bad)))


def not_finite(noun: str, place: int, count: int) -> str:
    """What is said of a picture, counted from 0 of so many, that the tower makes no numbers of."""
    return (
        f"The vision tower gives no finite numbers for {noun} {place + 1} of {count}; look for NaN or infinity in its pixels, "
        "in the weights, or in a dtype that is too narrow for them."
    )


def asked(patches: ScoredPatches, questions: Sequence[str] | None, groups: Sequence[int] | None = None) -> ScoredPatches:
    """The patches with what is asked about each picture; `groups` as for `counts_for`.

    Raises:
        UserError: there is not one text for each picture.
    """
    if questions is None:
        return patches
    groups = groups or [1] * len(patches.scores)
    check_questions(questions, len(groups))
    rows = [text for text, count in zip(questions, groups, strict=True) for _ in range(count)]
    return replace(patches, questions=tuple(rows))


def check_questions(questions: object, count: int, each: str = "") -> None:
    """Refuse questions that are not as many texts as `count`; `each` says what they are about, pictures if left out."""
    if not isinstance(questions, (list, tuple)) or len(questions) != count or not all(isinstance(x, str) for x in questions):
        each = each or f"each of the {count} pictures of pixel_values"
        raise UserError(f"questions must be a list of texts, one for {each}.")


def choose(patches: ScoredPatches, counts: Sequence[int], method: Method, *, windows: Sequence[Window] | None = None) -> Choice:
    """What the method keeps of each row; it is called once for all rows of one window and count.

    On a device nothing here waits for it where all rows keep the same count, except the check of what a method returned
    that does not say that it is `ordered`.

    Args:
        patches: S rows.
        counts: how many tokens to keep of each; only a method whose traits say `other_counts` may keep more or fewer.
        method: which ones.
        windows: for each row, the patches that take part; all of them without it.

    Raises:
        UserError: the method returned anything else than a choice among the patches.
    """
    patches, told = replace(patches, finish=once(patches.finish)), traits(method)
    looked_at = patches.features() if told.score_free and "features" in told.reads else patches.scores
    _refuse_what_is_no_number(looked_at, [1] * len(looked_at), "picture or part of one")
    whole = (0, patches.grid[0], 0, patches.grid[1])
    windows = windows or [whole] * len(counts)
    asked: dict[tuple[Window, int], list[int]] = {}
    for row, key in enumerate(zip(windows, counts, strict=True)):
        asked.setdefault(key, []).append(row)
    found = []
    for (window, count), rows in asked.items():
        if count:
            part, places = (patches, None) if asked.keys() == {(whole, count)} else window_of(patches, rows, window)
            kept = method(part, count)
            check_kept(
                *(kept, *part.scores.shape),
                count=None if told.other_counts else count,
                read=not told.ordered or not waits(kept.index),
            )
            found.append((rows, places, kept))
    areas = [_area(window) for window in windows]
    if len(found) == 1 and found[0][1] is None:
        kept = found[0][2]
        same = [kept.index.shape[1]] * len(counts)
        mask, weights = kept.mask.to(patches.scores.device), kept.weights
        return Choice(patches, mask, same, weights, weights is None and same == areas, kept.projected)
    return _joined(patches, areas, found)


def keep_all(patches: ScoredPatches) -> Choice:
    """Every patch of each row, as it is."""
    total, count = patches.scores.shape
    mask = torch.ones(total, count, dtype=torch.bool, device=patches.scores.device)
    return Choice(patches, mask, [count] * total, None, everything=True)


def _joined(patches: ScoredPatches, areas: list[int], found: list[tuple[list[int], Tensor | None, KeptTokens]]) -> Choice:
    """One choice of what was kept of some rows each, at places among the patches of a window."""
    total, count = patches.scores.shape
    device = patches.scores.device
    mask = torch.zeros(total, count, dtype=torch.bool, device=device)
    counts = [0] * total
    most = max((kept.index.shape[1] for _, _, kept in found), default=0)
    weights = None
    if any(kept.weights is not None for _, _, kept in found):
        weights = torch.zeros(total, most, count, device=device)
    for rows, places, kept in found:
        places = torch.arange(count, device=device) if places is None else places
        where = torch.tensor(rows, device=device)[:, None]
        index = kept.index.to(device)
        mask[where, places[index]] = True
        for row in rows:
            counts[row] = index.shape[1]
        if weights is not None:
            own = F.one_hot(index, len(places)) if kept.weights is None else kept.weights
            tokens = torch.arange(index.shape[1], device=device)[:, None]
            weights[where[:, :, None], tokens, places] = own.to(weights)
    projected = any(kept.projected for _, _, kept in found)
    return Choice(patches, mask, counts, weights, weights is None and counts == areas, projected)


def window_of(patches: ScoredPatches, rows: Sequence[int], window: Window) -> tuple[ScoredPatches, Tensor]:
    """Some rows, cut to a window of their patches, as patches that know of no others; and the window's places (n,)."""
    device = patches.cls_attention.device
    places = _places(patches.grid, window).to(device)
    taken = torch.tensor(rows, device=device)
    top, bottom, left, right = window

    def cut(x: Tensor, dim: int) -> Tensor:
        return x[taken.to(x.device)].index_select(dim, places.to(x.device))

    def finish(index: Tensor | None, cls: bool = False) -> Tensor:
        every = patches.features(cls=cls)
        features = cut(every[:, int(cls) :], 1)
        return token_rows(
            torch.cat((every[taken.to(every.device), :1], features), dim=1) if cls else features, int(cls), index, cls
        )

    part = replace(
        patches,
        cls_attention=cut(patches.cls_attention, 2),
        grid=(bottom - top, right - left),
        image_key=patches.image_key[taken.to(patches.image_key.device)],
        finish=finish,
        block_keys=None if patches.block_keys is None else lambda: cut(patches.keys(), 2),
        questions=None if patches.questions is None else tuple(patches.questions[row] for row in rows),
        other_blocks=changed(patches.other_blocks, lambda attention: cut(attention, 2)),
    )
    return part, places


def once(finish: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`finish` that computes all patches once: asked for some of them afterwards, it takes them from there."""
    known: dict[bool, Tensor] = {}

    def remembered(index: Tensor | None, cls: bool = False) -> Tensor:
        asked = (cls,) if cls else ()
        if index is None and cls not in known:
            known[cls] = finish(None, *asked)
        return token_rows(known[cls], int(cls), index, cls) if cls in known else finish(index, *asked)

    return remembered


def _area(window: Window) -> int:
    top, bottom, left, right = window
    return max(0, bottom - top) * max(0, right - left)


def _places(grid: tuple[int, int], window: Window) -> Tensor:
    """(n,) the raster positions in a window of a grid of patches."""
    top, bottom, left, right = window
    return torch.arange(grid[0] * grid[1]).view(grid)[top:bottom, left:right].flatten()
