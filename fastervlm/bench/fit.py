"""Shares of a device fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.terms import Term

Seen = tuple[Sequence[Term], float]  # terms, and the seconds that all of them took
_NOISE = 0.01  # relative errors beyond it count by their size, not by its square: an outlier does not drag the rest along
_PRIOR = 1e-3  # by how much less a share that is e times another costs than an error of 100 % in one measurement
_ROUNDS = 50


def fit(device: DeviceSpec, dtype: str, seen: Sequence[Seen]) -> DeviceSpec:
    """The device with the shares by which relative errors of all that was seen are smallest.

    Shares move by factors, so that they stay positive. What nothing tells stays as it was, and what cannot be told apart moves
    together. Least squares by Gauss and Newton, reweighted as Huber's estimator.
    """
    names = sorted({term.share for terms, _ in seen for term in terms})
    moved = np.zeros(len(names))
    for _ in range(_ROUNDS if names else 0):
        now = device.fitted(**_shares(device, names, moved))
        slopes, errors = np.empty((len(seen), len(names))), np.empty(len(seen))
        for i, (terms, seconds) in enumerate(seen):
            told = now.seconds(terms, dtype)
            whole = sum(part for _, part in told)
            slopes[i] = [sum(part for term, part in told if term.share == name) / whole for name in names]
            errors[i] = np.log(seconds / whole)
        weights = np.minimum(1, _NOISE / np.maximum(np.abs(errors), _NOISE))
        normal = slopes.T @ (weights[:, None] * slopes) + _PRIOR * np.eye(len(names))
        step = np.linalg.solve(normal, slopes.T @ (weights * errors) - _PRIOR * moved)
        moved += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    return device.fitted(**_shares(device, names, moved))


def _shares(device: DeviceSpec, names: Sequence[str], moved: np.ndarray) -> dict[str, float]:
    """Seconds that are e times as long are a share that is e times smaller."""
    return {name: float(device.efficiency[name] * np.exp(-by)) for name, by in zip(names, moved, strict=True)}
