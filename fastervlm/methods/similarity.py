"""Cosine similarities that are the same in every batch, and in which what is equal but for rounding is a tie.

Dims: B pictures, N and M rows compared, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Vectors are brought to this length, so that products rounded to whole numbers are cosines in steps of 2 ** -40: far above
# what float64 rounds and far below what tells two patches apart.
_LENGTH = 2.0**20
_BLOCK = 48


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosine similarity of each row of x (B, N, C) with each of y (B, M, C), or of x itself: (B, N, M) float64.

    In whole steps of 2 ** -40, and one picture at a time, so that it does not depend on the batch. A row of zeros is similar
    to nothing, itself included.
    """
    found = torch.empty(*x.shape[:2], (x if y is None else y).shape[1], dtype=torch.double, device=x.device)
    # Written to memory that begins alike for all pictures: where it begins may change the order of summation.
    one = torch.empty_like(found[0]) if len(found) else found
    for picture in range(len(x)):
        if y is None:
            _with_itself(_scaled(x[picture]), one)
        else:
            torch.mm(_scaled(x[picture]), _scaled(y[picture]).T, out=one)
        torch.mul(one.round_(), _LENGTH**-2, out=found[picture])
    return found


def _scaled(x: Tensor) -> Tensor:
    """Rows of x (N, C) at `_LENGTH`, float64; rows of zeros stay zero."""
    x = x.detach().to(torch.double, copy=True, memory_format=torch.contiguous_format)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.mul_(_LENGTH / length.masked_fill(length == 0, 1))


def _with_itself(x: Tensor, found: Tensor) -> None:
    """Write x @ x.T of x (N, C) into found (N, N); what lies below the diagonal is mirrored instead of computed."""
    for start in range(0, len(x), _BLOCK):
        end = start + _BLOCK
        torch.mm(x[start:end], x[start:].T, out=found[start:end, start:])
        found[end:, start:end] = found[start:end, end:].T
        block = found[start:end, start:end]
        block.copy_(block.triu() + block.triu(1).T)
