"""Shortening prompts and giving them back, against plain lists."""

import pytest
import torch

from encoders import UserError
from fastervlm.generation.splice import Splice

PAD = 9


def shorten(ids, mask, keep, side):
    """Row by row: what stays, and filled on a side to equal length."""
    kept = [[(i, m, c) for c, (i, m, k) in enumerate(zip(*row, strict=True)) if k] for row in zip(ids, mask, keep, strict=True)]
    longest = max(len(row) for row in kept)
    filled = []
    for row in kept:
        fill = [(PAD, 0, None)] * (longest - len(row))
        filled.append(fill + row if side == "left" else row + fill)
    return filled


# ids, mask, keep, the side on which shorter rows are filled
CASES = {
    "nothing removed": ([[1, 2, 3]], [[1, 1, 1]], [[1, 1, 1]], "left"),
    "one row": ([[1, 2, 3, 4]], [[1, 1, 1, 1]], [[1, 0, 0, 1]], "left"),
    "equal rows": ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1] * 4] * 2, [[1, 0, 1, 1], [0, 1, 1, 1]], "left"),
    "unequal rows": ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1] * 4] * 2, [[1, 0, 0, 1], [1, 1, 1, 1]], "left"),
    "padded left": ([[9, 9, 3, 4], [5, 6, 7, 8]], [[0, 0, 1, 1], [1] * 4], [[1, 1, 0, 1], [1, 0, 0, 1]], "left"),
    "padded right": ([[1, 2, 9, 9], [5, 6, 7, 8]], [[1, 1, 0, 0], [1] * 4], [[1, 0, 1, 1], [1, 0, 0, 1]], "right"),
    "right, much lost": ([[1, 2, 3, 9], [5, 6, 7, 8]], [[1, 1, 1, 0], [1] * 4], [[0, 0, 1, 1], [1] * 4], "right"),
    "both sides": ([[9, 2, 3, 4], [5, 6, 7, 9]], [[0, 1, 1, 1], [1, 1, 1, 0]], [[1, 0, 0, 1], [1] * 4], "left"),
    "a row of nothing": ([[1, 2], [3, 4]], [[1, 1], [1, 1]], [[0, 0], [1, 1]], "left"),
}


def splice_of(case, **settings):
    ids, mask, keep, _ = CASES[case]
    numbers = settings.pop("numbers", torch.arange(len(ids[0])).expand(len(ids), -1))
    return Splice.of(torch.tensor(ids), torch.tensor(mask), torch.tensor(keep).bool(), numbers, pad=PAD, **settings)


@pytest.mark.parametrize("case", CASES)
def test_short_prompts(case):
    expected, splice = shorten(*CASES[case]), splice_of(case)
    assert splice.short_ids.tolist() == [[i for i, _, _ in row] for row in expected]
    assert splice.short_mask.tolist() == [[m for _, m, _ in row] for row in expected]
    assert splice.take(torch.arange(len(CASES[case][0][0])).expand_as(splice.ids), -1).tolist() == [
        [-1 if c is None else c for _, _, c in row] for row in expected
    ]
    assert splice.removed == len(CASES[case][0][0]) - len(expected[0])


def test_without_a_mask_all_columns_count():
    splice = Splice.of(torch.tensor([[0, 2, 3]]), None, torch.tensor([[True, False, True]]), torch.arange(3)[None])
    assert splice.short_mask.tolist() == [[1, 1]]
    assert splice.short_ids.tolist() == [[0, 3]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("times", [1, 3])
def test_generated_tokens_come_back_behind_the_whole_prompt(case, times):
    splice = splice_of(case)
    new = torch.arange(100, 100 + len(splice.ids) * times * 2).view(-1, 2)
    sequences = torch.cat((splice.short_ids.repeat_interleave(times, dim=0), new), dim=1)
    whole = splice.restore(sequences)
    assert torch.equal(whole[:, :-2], splice.ids.repeat_interleave(times, dim=0))
    assert torch.equal(whole[:, -2:], new)


@pytest.mark.parametrize("case", CASES)
def test_what_stands_behind_stays(case):
    splice, more = splice_of(case), torch.tensor([[0, 1, 1]])
    longer = splice.grow(2)
    assert longer.short_ids.tolist() == [[*row, PAD, PAD] for row in splice.short_ids.tolist()]
    assert longer.short_mask.tolist() == [[*row, 1, 1] for row in splice.short_mask.tolist()]
    assert longer.removed == splice.removed
    rows = len(splice.ids)
    for mask in (more, torch.cat((torch.zeros_like(splice.mask), more.expand(rows, -1)), dim=1)):
        longer = splice.grow(3, mask.expand(rows, -1))
        assert longer.short_mask.tolist() == [[*row, 0, 1, 1] for row in splice.short_mask.tolist()]
        assert torch.equal(longer.mask[:, : splice.ids.shape[1]], splice.mask)


def test_rows_that_came_from_others():
    splice = splice_of("unequal rows")
    assert splice.for_rows(2) is splice
    assert splice.for_rows(6).ids[:, 0].tolist() == [1, 1, 1, 5, 5, 5]
    assert splice.for_rows(6).short_ids.tolist() == splice.short_ids.repeat_interleave(3, dim=0).tolist()
    for rows in (1, 3, 5):
        with pytest.raises(UserError, match=f"was made for 2 rows and cannot continue with {rows}"):
            splice.for_rows(rows)


def by_column(mask):
    return list(range(len(mask)))


def by_mask(mask):
    return [max(0, sum(mask[: column + 1]) - 1) for column in range(len(mask))]


def from_ten(mask):
    return [10 + number for number in by_mask(mask)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "a row of nothing"])
@pytest.mark.parametrize("count", [by_column, by_mask, from_ten])
@pytest.mark.parametrize("tail", [[], [1, 1], [0, 1, 1]])
def test_positions(case, count, tail):
    """Of real tokens only: what stands at pads and fillers is masked out. Behind the prompt unmasked tokens are counted."""
    ids, masks, keeps, _ = CASES[case]
    numbers = [count(mask) for mask in masks]
    for compact in (True, False):
        splice = splice_of(case, numbers=torch.tensor(numbers), compact=compact)
        splice = splice.grow(len(tail), torch.tensor([tail] * len(ids))) if tail else splice
        for row in range(len(ids)):
            real = [(n, k) for n, m, k in zip(numbers[row], masks[row], keeps[row], strict=True) if m]
            real += [(real[-1][0] + 1 + i, 1) for i in range(sum(tail))]
            lost = [sum(not k for _, k in real[:i]) * compact for i in range(len(real))]
            expected = [number - less for (number, kept), less in zip(real, lost, strict=True) if kept]
            assert splice.positions[row][splice.short_mask[row].bool()].tolist() == expected
