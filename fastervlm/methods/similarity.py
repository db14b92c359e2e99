"""Cosine similarities that are the same in every batch, and in which what is equal but for rounding is a tie.

Dims: B pictures, N and M rows compared, C width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Vectors are brought to this length, so that products rounded to whole numbers are cosines in steps of 2 ** -40: far above
# what float64 rounds and far below what tells two patches apart.
_LENGTH = 2.0**20
# So many rows are multiplied at a time, of few and of many.
_BLOCKS, _MANY = (48, 192), 1024


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosine similarity of each row of x (B, N, C) with each of y (B, M, C), or of x itself: (B, N, M) float64.

    In whole steps of 2 ** -40, and one picture at a time, so that it does not depend on the batch. A row of zeros is similar
    to nothing, itself included. No other matrix of that size is made on the way.
    """
    found = torch.empty(*x.shape[:2], (x if y is None else y).shape[1], dtype=torch.double, device=x.device)
    for picture in range(len(x)):
        if y is None:
            _with_itself(_scaled(x[picture]), found[picture], _LENGTH**-2)
        else:
            _with_others(_scaled(x[picture]), _scaled(y[picture]), found[picture])
    return found


def whole_cosines(x: Tensor) -> Tensor:
    """Cosine similarity of each row of x (B, N, C) with each of them, in whole steps of 2 ** -30: (B, N, N) int32.

    Half the memory of `cosines`, and steps that still tell random features of any size apart, which float32 does not.
    """
    found = torch.empty(*x.shape[:2], x.shape[1], dtype=torch.int32, device=x.device)
    for picture in range(len(x)):
        _with_itself(_scaled(x[picture]), found[picture], 2.0**30 * _LENGTH**-2)
    return found


def _scaled(x: Tensor) -> Tensor:
    """Rows of x (N, C) at `_LENGTH`, float64; rows of zeros stay zero."""
    x = x.detach().to(torch.double, copy=True, memory_format=torch.contiguous_format)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.mul_(_LENGTH / length.masked_fill(length == 0, 1))


def _with_others(x: Tensor, y: Tensor, found: Tensor) -> None:
    """Write the cosines of scaled x (N, C) and y (M, C) into found (N, M)."""
    # Products begin in memory of their own: where it begins may change the order of summation.
    for start in range(0, len(x), _MANY):
        torch.mul(torch.mm(x[start : start + _MANY], y.T).round_(), _LENGTH**-2, out=found[start : start + _MANY])


def cosine_rows(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Cosine similarities of rows of x (N, C), some rows at a time: the first of them, and (rows, N - first) float64.

    In whole steps of 2 ** -40. What stands before their first column is that of earlier rows, mirrored.
    """
    for start, strip in _strips(_scaled(x)):
        yield start, strip.mul_(_LENGTH**-2)


def _strips(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Whole numbers of x @ x.T of scaled x (N, C), some rows at a time, from the diagonal on, which is symmetric."""
    size = _BLOCKS[len(x) >= _MANY]
    for start in range(0, len(x), size):
        strip = torch.mm(x[start : start + size], x[start:].T).round_()
        block = strip[:, : len(strip)]
        block.copy_(block.triu() + block.triu(1).T)
        yield start, strip


def _with_itself(x: Tensor, found: Tensor, unit: float) -> None:
    """Write x @ x.T of scaled x (N, C), times a unit, into found (N, N); below the diagonal it is mirrored, not computed."""
    for start, strip in _strips(x):
        end = start + len(strip)
        strip.mul_(unit)
        if not found.is_floating_point():
            strip.round_()
        found[start:end, start:] = strip
        found[end:, start:end] = strip[:, len(strip) :].T
