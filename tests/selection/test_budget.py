"""How many tokens a budget keeps, and the sentences for what is no budget."""

import dataclasses
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastervlm import TokenBudget, UserError, UserTypeError


@pytest.mark.parametrize(
    ("keep", "num_patches", "expected"),
    [
        (58, 576, 58),
        (1, 576, 1),
        (576, 576, 576),
        (577, 576, 576),
        (10**30, 576, 576),
        (0.1, 576, 58),
        (0.25, 576, 144),
        (0.05, 576, 29),
        (1.0, 576, 576),
        (1e-9, 576, 1),
        (5e-324, 1, 1),
        (0.5, 5, 3),
        (0.5, 7, 4),
        (0.5, 1, 1),
        (0.1, 24, 2),
        (Fraction(1, 10), 576, 58),
        (np.int64(58), 576, 58),
        (np.uint8(58), 576, 58),
        (np.float64(0.1), 576, 58),
        (np.float32(0.1), 576, 58),
        (np.float16(0.1), 576, 58),
    ],
)
def test_tokens_kept(keep, num_patches, expected):
    for budget in (TokenBudget(keep), TokenBudget(keep=keep), TokenBudget.of(keep), TokenBudget.of(TokenBudget(keep))):
        assert isinstance(budget, TokenBudget)
        kept = budget.resolve(num_patches)
        assert kept == expected
        assert type(kept) is int


@pytest.mark.parametrize(
    ("rate", "num_patches", "expected"),
    [
        (0.9, 576, 58),
        (0.5, 576, 288),
        (0.75, 576, 144),
        (0.95, 576, 29),
        (0, 576, 576),
        (0.0, 576, 576),
        (0.999999, 576, 1),
        (0.9, 5, 1),
        (0.9, 25, 3),  # 2.5 in exact arithmetic, a little less in floats
        (0.7, 5, 2),
        (Fraction(9, 10), 576, 58),
        (np.float32(0.9), 576, 58),
    ],
)
def test_tokens_kept_by_the_rate_removed(rate, num_patches, expected):
    kept = TokenBudget(pruning_rate=rate).resolve(num_patches)
    assert kept == expected
    assert type(kept) is int


@pytest.mark.parametrize("tenths", range(1, 11))
def test_keeping_and_removing_agree_to_the_token(tenths):
    for num_patches in (*range(1, 60), 144, 256, 576, 729, 2880):
        exact = max(1, (2 * num_patches * tenths + 10) // 20)  # nearest, halves up, in whole numbers
        assert TokenBudget(tenths / 10).resolve(num_patches) == exact
        assert TokenBudget(pruning_rate=1 - tenths / 10).resolve(num_patches) == exact


@pytest.mark.parametrize(
    ("keep", "error", "sentence"),
    [
        (0, UserError, "keep=0 would leave no visual token; give a count of at least 1."),
        (-3, UserError, "keep=-3 would leave no visual token"),
        (np.int32(0), UserError, "would leave no visual token"),
        (0.0, UserError, r"keep=0.0 is no fraction in \(0, 1\]; give a whole number"),
        (-0.1, UserError, "keep=-0.1 is no fraction"),
        (1.0001, UserError, "keep=1.0001 is no fraction"),
        (58.0, UserError, "keep=58.0 is no fraction .* give a whole number to keep a count"),
        (float("nan"), UserError, "keep=nan is no fraction"),
        (np.float32("nan"), UserError, "keep=nan is no fraction"),
        (float("inf"), UserError, "keep=inf is no fraction"),
        (float("-inf"), UserError, "keep=-inf is no fraction"),
        ("58", UserTypeError, "keep='58' is no number; give a count such as 58 or a fraction such as 0.1."),
        (True, UserTypeError, "keep=True is no number"),
        (np.True_, UserTypeError, "is no number"),
        ([58], UserTypeError, "is no number"),
        (58j, UserTypeError, "is no number"),
        (Decimal("0.1"), UserTypeError, "is no number"),
        (torch.tensor(58), UserTypeError, "is no number"),
    ],
)
def test_what_is_no_amount_to_keep(keep, error, sentence):
    for make in (TokenBudget, TokenBudget.of):
        with pytest.raises(error, match=sentence) as caught:
            make(keep)
        assert caught.type is error


@pytest.mark.parametrize(
    ("rate", "error", "sentence"),
    [
        (1, UserError, r"pruning_rate=1 is outside \[0, 1\); 0.9 removes 90 %"),
        (1.0, UserError, "is outside"),
        (90, UserError, "pruning_rate=90 is outside"),
        (-0.1, UserError, "is outside"),
        (float("nan"), UserError, "pruning_rate=nan is outside"),
        (float("inf"), UserError, "is outside"),
        ("0.9", UserTypeError, "pruning_rate='0.9' is no number; give the fraction to remove"),
        (False, UserTypeError, "pruning_rate=False is no number"),
        (Decimal("0.9"), UserTypeError, "is no number"),
    ],
)
def test_what_is_no_rate_to_remove(rate, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        TokenBudget(pruning_rate=rate)
    assert caught.type is error


@pytest.mark.parametrize("both", [{}, {"keep": 58, "pruning_rate": 0.9}, {"keep": None, "pruning_rate": None}])
def test_one_of_keep_and_pruning_rate_is_needed(both):
    with pytest.raises(UserError, match="needs either keep or pruning_rate, and not both"):
        TokenBudget(**both)


def test_a_budget_is_a_value():
    assert TokenBudget(58) == TokenBudget(keep=58) != TokenBudget(0.1)
    assert len({TokenBudget(58), TokenBudget(58), TokenBudget(pruning_rate=0.9)}) == 2
    assert (str(TokenBudget(58)), str(TokenBudget(pruning_rate=0.9))) == ("keep=58", "pruning_rate=0.9")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenBudget(58).keep = 0  # type: ignore[misc]
