"""Benchmarks of speed and memory, in turns.

Of a model on a benchmark, with its score: `cases` says what is compared, `run` measures it, `table` tells the result. Of speed
alone: `shapes`, `build` and `workload` say what runs, `variants` and `peers` what is compared, `speed` and `stages` measure it,
`speed_table` tells the result. `flops` counts work by formula; by it `plan` predicts times on a device of `devices`, and
`calibrate` fits that to a measurement.
"""

from __future__ import annotations

from fastervlm.bench.cases import PRESETS, Case
from fastervlm.bench.run import bench
from fastervlm.bench.table import Bench, Row

__all__ = ["PRESETS", "Bench", "Case", "Row", "bench"]
