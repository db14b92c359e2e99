"""The tiny model and benchmark for the tests of a search."""

from tests.support.evaluation_fixtures import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject"]
