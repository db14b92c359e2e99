"""Benchmarks of speed and memory: `cases` says what is compared, `run` measures it in turns, `table` tells the result."""

from __future__ import annotations

from fastervlm.bench.cases import PRESETS, Case
from fastervlm.bench.run import bench
from fastervlm.bench.table import Bench, Row

__all__ = ["PRESETS", "Bench", "Case", "Row", "bench"]
