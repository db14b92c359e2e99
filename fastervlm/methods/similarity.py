"""Cosine similarities that come out the same to the last bit in every batch, in whatever order they are summed.

Dims: B pictures, N and M rows compared, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Vectors are brought to this length and rounded to whole numbers: products and all partial sums are then whole numbers up to
# 2 ** 52, which float64 holds exactly, so that no order of summation rounds.
_LENGTH = 2.0**26
_LEVELS = 2.0**20
_BLOCK = 48


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosine similarity of each row of x (B, N, C) with each of y (B, M, C), or of x itself: (B, N, M) float64.

    A row of zeros is similar to nothing, itself included.
    """
    found = torch.empty(*x.shape[:2], (x if y is None else y).shape[1], dtype=torch.double, device=x.device)
    for picture in range(len(x)):
        _compare(x[picture], None if y is None else y[picture], found[picture])
    return found.div_(_LENGTH**2)


def levels(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The same in whole steps of 2 ** -20, as float32, which holds them exactly: what is equal but for rounding is a tie."""
    found = torch.empty(*x.shape[:2], (x if y is None else y).shape[1], device=x.device)
    exact = torch.empty(found.shape[1:], dtype=torch.double, device=x.device)
    for picture in range(len(x)):
        _compare(x[picture], None if y is None else y[picture], exact)
        found[picture] = exact.mul_(_LEVELS / _LENGTH**2).round_()
    return found


def _compare(x: Tensor, y: Tensor | None, found: Tensor) -> None:
    """Write the similarities of one picture's rows x (N, C) and y (M, C) into found (N, M), `_LENGTH` ** 2 times as large."""
    whole = _whole(x.detach())
    if y is None:
        _with_itself(whole, found)
    else:
        torch.mm(whole, _whole(y.detach()).T, out=found)


def _whole(x: Tensor) -> Tensor:
    """Rows of x (N, C) at `_LENGTH`, in whole numbers, float64; rows of zeros stay zero."""
    x = x.to(torch.double, copy=True)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.mul_(_LENGTH / length.masked_fill(length == 0, 1)).round_()


def _with_itself(x: Tensor, found: Tensor) -> None:
    """Write x @ x.T of x (N, C) into found (N, N); below the diagonal blocks are mirrored instead of computed."""
    for start in range(0, len(x), _BLOCK):
        end = start + _BLOCK
        torch.mm(x[start:end], x[start:].T, out=found[start:end, start:])
        found[end:, start:end] = found[start:end, end:].T
