"""A bound for pictures of any size: how many tokens each crop of a picture keeps, by fractions."""

from fractions import Fraction

import pytest
import torch

from fastervlm import AtMost, Mass, TokenBudget, UserError, UserTypeError
from fastervlm.selection.choice import counts_for


def by_hand(given, most):
    """Shares of `most` in proportion, whole ones first, then one more for the largest parts left over, the earlier first."""
    if sum(given) <= most:
        return given
    shares = [Fraction(count * most, sum(given)) for count in given]
    whole = [share.numerator // share.denominator for share in shares]
    while sum(whole) < most:
        left = [share - count for share, count in zip(shares, whole, strict=True)]
        whole[left.index(max(left))] += 1
    return whole


@pytest.mark.parametrize("most", [1, 2, 7, 58, 100, 10**9])
@pytest.mark.parametrize("keep", [1.0, 0.3, 5])
@pytest.mark.parametrize("areas", [[9], [100], [9, 9], [4000, 1, 3], [12, 12, 12, 7, 1]])
def test_a_picture_never_keeps_more(areas, keep, most):
    scores, groups = torch.rand(len(areas) * 2, max(areas)), [len(areas)] * 2
    plain = TokenBudget(keep).counts(scores, areas * 2, groups)
    found = AtMost(most, keep).counts(scores, areas * 2, groups)
    assert found == by_hand(plain[: len(areas)], most) * 2
    assert sum(found) <= 2 * most
    assert all(0 <= few <= many for few, many in zip(found, plain, strict=True))


def test_what_it_says():
    assert AtMost(256).counts(torch.rand(1, 100), [100], [1]) == [100]
    assert AtMost(256).counts(torch.rand(1, 4000), [4000], [1]) == [256]
    assert AtMost(256, 0.1).counts(torch.rand(2, 4000), [100, 4000], [1, 1]) == [100, 256]
    assert AtMost(3).reads_scores is AtMost(3, 0.5).reads_scores is False
    assert AtMost(3, Mass(0.5)).reads_scores
    assert AtMost(3, 0.5) == AtMost(3, TokenBudget(0.5))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: AtMost(0), UserError, "would leave no visual token"),
        (lambda: AtMost(2.5), UserTypeError, "is no whole number"),  # type: ignore[arg-type]
        (lambda: AtMost(None), UserTypeError, r"AtMost\(None\) is no whole number"),  # type: ignore[arg-type]
        (lambda: AtMost(5, 0), UserError, "keep=0 would leave no visual token"),
    ],
)
def test_what_is_no_bound(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_the_bound_of_a_row_holds_where_rows_share():
    scores = torch.ones(2, 100)
    scores[0] += 1
    for most in (Mass(0.9, at_most=50), AtMost(200, Mass(0.9, at_most=50))):
        assert counts_for(most, scores, groups=[2], pool=True) == [50, 0]
