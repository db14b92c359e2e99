"""The tiny model and benchmark of the evaluation's tests, and runs without plots."""

from tests.support.analysis_runs import undrawn
from tests.support.evaluation_fixtures import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject", "undrawn"]
