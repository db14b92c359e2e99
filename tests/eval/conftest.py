"""The tiny model and benchmark of the evaluation's tests."""

from tests.support.evaluation_fixtures import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject"]
