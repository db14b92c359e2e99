"""Draws that depend on integers alone, so that they come out alike in any batch, on any device and in any thread."""

from __future__ import annotations

from torch import Tensor


def mix(x: Tensor) -> Tensor:
    """A 64-bit mixing of int64 values: multiply and xor-shift rounds, wrapping around as the hardware does."""
    for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27), (0x1E3779B97F4A7C15, 31)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return x ^ ((x >> 32) & 0xFFFFFFFF)
