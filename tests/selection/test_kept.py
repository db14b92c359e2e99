"""Choosing the highest scores, and the three ways to use the choice: index, mask, rows."""

import pytest
import torch

from fastervlm import KeptTokens


def by_hand(scores, k):
    """The best `k` of one row: highest first, of equals the earlier; then in raster order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


@pytest.mark.parametrize("k", [1, 2, 7, 30, 58, 64])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_the_highest_scores_in_raster_order_and_ties_to_the_earlier(k, levels):
    scores = torch.randint(levels, (5, 64), generator=torch.Generator().manual_seed(levels)).float()
    kept = KeptTokens.top(scores, k)
    assert kept.index.tolist() == [by_hand(row, k) for row in scores.tolist()]
    assert kept.index.dtype == torch.int64
    assert kept.num_patches == 64


def test_whole_numbers_of_64_bits_are_told_apart():
    """Floats of 53 bits would call these two equal and take the first."""
    assert KeptTokens.top(torch.tensor([[2**62, 2**62 + 1]]), 1).index.tolist() == [[1]]


@pytest.mark.parametrize("k", [1, 5, 12])
def test_mask_and_rows_say_the_same_as_the_index(k):
    kept = KeptTokens.top(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), k)
    assert kept.mask.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in kept.mask] == kept.index.tolist()
    for shape in [(3, 12), (3, 12, 4), (3, 12, 2, 5)]:
        x = torch.randn(shape)
        assert torch.equal(kept.gather(x), torch.stack([row[index] for row, index in zip(x, kept.index, strict=True)]))


def test_gradients_reach_the_kept_rows_alone():
    x = torch.randn(2, 6, 3, requires_grad=True)
    kept = KeptTokens(torch.tensor([[0, 5], [2, 3]]), 6)
    kept.gather(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., 0].bool(), kept.mask)
