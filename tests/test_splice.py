"""Shortening prompts and giving them back, against plain lists."""

import pytest
import torch

from encoders import UserError
from fastervlm.splice import Splice

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


def splice_of(case):
    ids, mask, keep, _ = CASES[case]
    return Splice.of(torch.tensor(ids), torch.tensor(mask), torch.tensor(keep).bool(), PAD)


@pytest.mark.parametrize("case", CASES)
def test_short_prompts(case):
    expected, splice = shorten(*CASES[case]), splice_of(case)
    assert splice.short_ids.tolist() == [[i for i, _, _ in row] for row in expected]
    assert splice.short_mask.tolist() == [[m for _, m, _ in row] for row in expected]
    assert splice.take(torch.arange(len(CASES[case][0][0])).expand_as(splice.ids), -1).tolist() == [
        [-1 if c is None else c for _, _, c in row] for row in expected
    ]
    assert splice.removed == len(CASES[case][0][0]) - len(expected[0])
    assert splice.removed_from_row.flatten().tolist() == [row.count(0) for row in CASES[case][2]]


def test_without_a_mask_all_columns_count():
    splice = Splice.of(torch.tensor([[0, 2, 3]]), None, torch.tensor([[True, False, True]]))
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
def test_a_longer_prompt_is_cut_the_same_way(case):
    splice = splice_of(case)
    more = torch.full((len(splice.ids), 2), 7)
    longer = splice.extend(torch.cat((splice.ids, more), dim=1), None)
    assert torch.equal(longer.short_ids, torch.cat((splice.short_ids, more), dim=1))
    assert torch.equal(longer.short_mask, torch.cat((splice.short_mask, torch.ones_like(more)), dim=1))
    assert longer.removed == splice.removed
    mask = torch.cat((splice.mask, torch.tensor([[0, 1]]).expand(len(splice.ids), -1)), dim=1)
    assert torch.equal(splice.extend(torch.cat((splice.ids, more), dim=1), mask).short_mask, splice.extend_mask(mask))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([[1, 2, 3, 4]], id="nothing new"),
        pytest.param([[1, 2, 3]], id="shorter"),
        pytest.param([[1, 2, 3, 5, 6]], id="another prompt"),
        pytest.param([[6]], id="the new tokens alone"),
        pytest.param([[1, 2, 3, 4, 6], [1, 2, 3, 4, 6]], id="more rows"),
    ],
)
def test_another_prompt_is_refused(ids):
    with pytest.raises(UserError, match=r"KV cache was made from a pruned prompt .* pass the whole history"):
        splice_of("one row").extend(torch.tensor(ids), None)


def test_rows_that_came_from_others():
    splice = splice_of("unequal rows")
    assert splice.for_rows(2) is splice
    assert splice.for_rows(6).ids[:, 0].tolist() == [1, 1, 1, 5, 5, 5]
    assert splice.for_rows(6).short_ids.tolist() == splice.short_ids.repeat_interleave(3, dim=0).tolist()
    for rows in (1, 3, 5):
        with pytest.raises(UserError, match=f"was made for 2 rows and cannot continue with {rows}"):
            splice.for_rows(rows)


@pytest.mark.parametrize("case", [case for case in CASES if case != "a row of nothing"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("from_mask", [False, True])
def test_positions(case, given, from_mask):
    """Of real tokens only: what stands at pads and fillers is masked out."""
    ids, mask, keep, _ = CASES[case]
    splice, rows = splice_of(case), range(len(ids))
    own = [[100 + 10 * row + column for column in range(len(ids[row]))] for row in rows]
    by_mask = [[sum(m[: c + 1]) - 1 for c in range(len(m))] for m in mask]
    whole = own if given else by_mask if from_mask else [list(range(len(m))) for m in mask]
    kwargs = {"given": torch.tensor(own) if given else None, "from_mask": from_mask}
    original, compact = splice.positions(compact=False, **kwargs), splice.positions(compact=True, **kwargs)
    assert original is not None
    assert (compact is None) is not given
    for row in rows:
        real = splice.short_mask[row].bool()
        stay = [c for c in range(len(ids[row])) if keep[row][c] and mask[row][c]]
        assert original[row][real].tolist() == [whole[row][c] for c in stay]
        if compact is not None:
            gone = [sum(1 for before in range(c) if not keep[row][before]) for c in stay]
            assert compact[row][real].tolist() == [whole[row][c] - lost for c, lost in zip(stay, gone, strict=True)]
