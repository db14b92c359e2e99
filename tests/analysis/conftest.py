"""The tiny model and benchmark of the evaluation's tests."""

from tests.eval.conftest import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject"]
