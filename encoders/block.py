"""One transformer block, run in two halves: keys first, then the rest for the kept rows only.

Exact, not an approximation: each row of a block depends on the other rows through their keys and values alone.
Source: FasterVLM, arXiv 2412.01818.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import cls_row, received_attention, token_rows


class HalfBlock(Protocol):
    """A block that has been stopped half-way."""

    def cls_attention(self) -> Tensor:
        """(B, M, N) float32, see `FeatureBlock`."""
        ...

    def received(self) -> Tensor:
        """(B, M, N) float32, see `FeatureBlock`."""
        ...

    def keys(self) -> Tensor:
        """(B, M, N, d), see `FeatureBlock`."""
        ...

    def finish(self, index: Tensor | None, cls: bool = False) -> Tensor:
        """(B, K, C), see `FeatureBlock`."""
        ...


class FeatureBlock(ABC):
    """A block of a tower, stopped after its keys; a library's subclass says how its blocks compute.

    Attributes:
        block: the library's own block.
        prefix: how many tokens stand before the patches, [CLS] first.
        hidden: (B, P + N, C), the input of the block, on the device where the block computes.
        normed: (B, P + N, C), what its attention reads.
        key: (B, M, P + N, d).
    """

    scale: float
    dropout: float

    def __init__(self, block: nn.Module, hidden: Tensor, prefix: int) -> None:
        self.block: Any = block
        self.prefix = prefix
        self.normed = self._norm(hidden)
        self.hidden = hidden.to(self.normed.device)
        self.key = self._placed(self._key(), None)

    def cls_attention(self) -> Tensor:
        """(B, M, N) float32: the softmax of the [CLS] query over all P + N keys, the prefix's own columns dropped."""
        # One row at a time: several at once are rounded in another way, and scores would depend on the rest of the batch.
        query = torch.cat([self._query(row) for row in self.normed[:, :1].split(1)])
        return cls_row(query, self.key, self.scale)[..., self.prefix :]

    def received(self) -> Tensor:
        """(B, M, N) float32: what each patch gets from all P + N queries, a mean; the prefix's own columns are dropped."""
        query = self._placed(self._query(self.normed), None)
        return received_attention(query, self.key, self.scale)[..., self.prefix :]

    def keys(self) -> Tensor:
        """(B, M, N, d): the keys of the patches."""
        return self.key[:, :, self.prefix :]

    def finish(self, index: Tensor | None, cls: bool = False) -> Tensor:
        """Output of the block (B, K, C) for the patches at index (B, K), or (B, N, C) for all; with `cls` [CLS] goes in front.

        Where all patches are wanted, the prefix rows are computed along: the matrices then have the shapes of the stock
        block, and so exactly its rounding.
        """
        if index is None or index.shape[1] == self.normed.shape[1] - self.prefix:
            rows = self._rows(self.normed, self.hidden, self._placed(self._query(self.normed), None))
            return token_rows(rows, self.prefix, index, cls)
        normed, residual = (token_rows(x, self.prefix, index, cls) for x in (self.normed, self.hidden))
        query = self._query(normed)
        if not cls:
            return self._rows(normed, residual, self._placed(query, index))
        return self._rows(normed, residual, torch.cat((query[:, :, :1], self._placed(query[:, :, 1:], index)), dim=2))

    def _rows(self, normed: Tensor, residual: Tensor, query: Tensor) -> Tensor:
        """The block's output (B, K, C) for rows whose queries are (B, M, K, d), seeing all keys and values."""
        dropout = self.dropout if self.block.training else 0.0
        mixed = F.scaled_dot_product_attention(query, self.key, self._value(), dropout_p=dropout, scale=self.scale)
        return self._rest(mixed, normed, residual)

    def _placed(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Queries or keys (B, M, T, d) turned by the position of the patches at an index, or of all tokens; here untouched."""
        return x

    @abstractmethod
    def _norm(self, hidden: Tensor) -> Tensor:
        """What attention reads of hidden (B, P + N, C)."""

    @abstractmethod
    def _query(self, normed: Tensor) -> Tensor:
        """(B, M, K, d) of some rows (B, K, C)."""

    @abstractmethod
    def _key(self) -> Tensor:
        """(B, M, P + N, d)."""

    @abstractmethod
    def _value(self) -> Tensor:
        """(B, M, P + N, d)."""

    @abstractmethod
    def _rest(self, mixed: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        """The block's output for rows whose mixed values are (B, M, K, d): output projection, residuals, MLP."""


def kind(cls: type) -> str:
    """Library and name of a class, such as "timm.Block"."""
    return f"{cls.__module__.split('.')[0]}.{cls.__name__}"


def heads(x: Tensor, count: int) -> Tensor:
    """(B, T, C) as (B, M, T, d), with M = `count`."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """(B, M, T, d) as (B, T, C)."""
    return x.transpose(1, 2).flatten(2)


def third(x: Tensor, weight: Tensor, bias: Tensor | None, part: int) -> Tensor:
    """Queries (part 0), keys (1) or values (2) of x (B, T, C) by a fused projection with a weight (3 C', C)."""
    return F.linear(x, weight.chunk(3)[part], None if bias is None else bias.chunk(3)[part])


def third_of(linear: nn.Module, x: Tensor, part: int) -> Tensor:
    """`third` of a fused projection module; one that is no plain `Linear` (quantised, adapted, offloaded) is called whole."""
    if type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and "forward" not in vars(linear):
        return third(x, linear.weight, linear.bias, part)
    return linear(x).chunk(3, dim=-1)[part]
