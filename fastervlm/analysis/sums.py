"""Sums over questions of what visual tokens receive; all that is held, and all that is on disk while questions are read.

Dims: L layers, R = 1 + 4 L distributions (the [CLS] scores, then each layer's attention of each kind), N patches of a unit,
n of them that have a visual token, 5 statistics.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders import UserError
from fastervlm.analysis.received import KINDS, Received
from fastervlm.analysis.statistics import STATISTICS, curves, statistics, top_of
from fastervlm.reporting.files import write_arrays

LAYER_OF_HISTOGRAM = 1  # the second, as in FasterVLM's analysis


@dataclass(frozen=True, eq=False)
class UnitSums:
    """Sums over the pictures, crops or frames of one name; all float64.

    Attributes:
        questions: () how many there were.
        patches: (N,) in how many of them a patch had a visual token.
        values: (R, N) what it received.
        described: (R,) how many had statistics: two patches or more, attention not all zero.
        curves: (R, N) cumulative attention, see `statistics.curves`.
        means: (5, R) their statistics.
        squares: (5, R) the squares of those.
    """

    questions: Tensor
    patches: Tensor
    values: Tensor
    described: Tensor
    curves: Tensor
    means: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, rows: int, patches: int) -> UnitSums:
        """Of nothing yet."""
        shapes = (), (patches,), (rows, patches), (rows,), (rows, patches), (len(STATISTICS), rows), (len(STATISTICS), rows)
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @classmethod
    def together(cls, parts: Iterable[UnitSums]) -> UnitSums:
        """Of several names as if they were one."""
        every = list(parts)
        return cls(*(torch.stack([getattr(part, each.name) for part in every]).sum(dim=0) for each in fields(cls)))

    def add(self, values: Tensor, raster: Tensor, total: int) -> None:
        """Count distributions (R, n) over the patches at raster (n,) of `total`; of other than N in all, statistics only."""
        self.questions.add_(1)
        if total == len(self.patches):
            self.patches[raster] += 1
            self.values[:, raster] += values
        if len(raster) < 2:
            return
        found = statistics(values, raster, total)
        self.described.add_(~found[0].isnan())
        self.curves.add_(curves(values, len(self.patches)).nan_to_num(0))
        self.means.add_(found.nan_to_num(0))
        self.squares.add_(found.nan_to_num(0).square())

    def of_patches(self) -> Tensor:
        """(R, N) means over questions; NaN where there never was a visual token."""
        return self.values / self.patches

    def of_curves(self) -> Tensor:
        """(R, N) means over questions."""
        return self.curves / self.described[:, None]

    def mean(self, name: str) -> Tensor:
        """(R,) a statistic's mean over questions."""
        return self.means[STATISTICS.index(name)] / self.described

    def deviation(self, name: str) -> Tensor:
        """(R,) its standard deviation over questions."""
        place = STATISTICS.index(name)
        return (self.squares[place] / self.described - self.mean(name).square()).clamp(min=0).sqrt()


class Sums:
    """Sums over questions, by the name of the unit; "run" is the whole run of visual tokens where there are several units.

    Attributes:
        units: by name.
        pooled: for "cls" and "last" (of the second layer) what each patch of each question received, one after the other.
        apart: (4 L,) sum over questions of what a visual token without a patch receives, on average; `with_apart` of them have
            such tokens.
        agreement: for each question read, by its line, the share of the strongest tenth of patches by [CLS] score that is
            also in the strongest tenth by the last token's attention, a mean over layers.
        tokens: visual tokens in all.
    """

    def __init__(self, layers: int, grid: tuple[int, int]) -> None:
        self.layers, self.grid = layers, grid
        self.units: dict[str, UnitSums] = {}
        self.pooled: dict[str, list[Tensor]] = {"cls": [], "last": []}
        self.apart = torch.zeros(4 * layers, dtype=torch.float64)
        self.with_apart = self.tokens = 0
        self.agreement: dict[int, float] = {}

    def add(self, line: int, received: Received) -> None:
        """Count the question at a line of its file."""
        attention, total = received.attention.flatten(0, 1), received.scores.shape[1]
        second = 1 + len(KINDS) * min(LAYER_OF_HISTOGRAM, self.layers - 1) + KINDS.index("last")
        for name, at, raster in received.patches():
            values = torch.cat((received.scores.flatten()[received.tokens[at]][None].double(), attention[:, at]))
            self._of(name).add(values, raster, total if name != "run" else len(raster))
            if name != "run":
                self.pooled["cls"].append(values[0].float())
                self.pooled["last"].append(values[second].float())
        apart = received.tokens < 0
        if apart.any():
            self.with_apart += 1
            self.apart += attention[:, apart].mean(dim=1)
        self.tokens += len(received.tokens)
        self.agreement[line] = agreement(received)

    def together(self) -> dict[str, UnitSums]:
        """The units by kind: "picture", "overview", "crop", "frame", "run"."""
        kinds: dict[str, list[UnitSums]] = {}
        for name, unit in self.units.items():
            kinds.setdefault(name.split("_")[0], []).append(unit)
        return {kind: UnitSums.together(units) for kind, units in kinds.items()}

    def _of(self, name: str) -> UnitSums:
        if name not in self.units:
            self.units[name] = UnitSums.empty(1 + len(KINDS) * self.layers, self.grid[0] * self.grid[1])
        return self.units[name]

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write all of it, with whose it is, whole or not at all."""
        about = {
            "identity": identity,
            "layers": self.layers,
            "grid": self.grid,
            "with_apart": self.with_apart,
            "tokens": self.tokens,
            "agreement": list(self.agreement.items()),
        }
        arrays = {f"{name}/{each.name}": getattr(unit, each.name) for name, unit in self.units.items() for each in fields(unit)}
        pooled = {f"pooled/{name}": torch.cat(values) for name, values in self.pooled.items()}
        write_arrays(path, {"about": np.array(json.dumps(about)), "apart": self.apart, **arrays, **pooled})

    @classmethod
    def load(cls, path: Path) -> tuple[Sums, dict[str, Any]]:
        """What was saved, and whose it is."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
                about = json.loads(str(file["about"]))
            sums = cls(about["layers"], tuple(about["grid"]))
            sums.with_apart, sums.tokens = about["with_apart"], about["tokens"]
            sums.agreement = {int(line): float(value) for line, value in about["agreement"]}
            sums.apart = arrays.pop("apart")
            sums.pooled = {name: [arrays.pop(f"pooled/{name}")] for name in sums.pooled}
            names = dict.fromkeys(name.split("/")[0] for name in arrays)
            sums.units = {name: UnitSums(*(arrays[f"{name}/{each.name}"] for each in fields(UnitSums))) for name in names}
            return sums, dict(about["identity"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            raise UserError(f"{path} holds no sums of an analysis; remove it, and its questions are read anew.") from None


def agreement(received: Received) -> float:
    """The share of the strongest tenth of each unit by [CLS] score that the last token's attention agrees with."""
    same = of = 0
    for by_cls, by_last in zip(*strongest(received), strict=True):
        same += int(torch.isin(by_cls, by_last).sum())
        of += len(by_cls)
    return same / of


def strongest(received: Received) -> tuple[list[Tensor], list[Tensor]]:
    """For each unit the patches (numbers as in `Received.tokens`) with the most [CLS] score and with the most attention."""
    last = received.attention[:, KINDS.index("last")].mean(dim=0)
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for name, at, _ in received.patches():
        if name == "run":
            continue
        tokens = received.tokens[at]
        for into, values in zip(found, (received.scores.flatten()[tokens], last[at]), strict=True):
            into.append(tokens[values.argsort(descending=True, stable=True)[: top_of(len(at))]])
    return found
