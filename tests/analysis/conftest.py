"""The tiny model and benchmark of the evaluation's tests."""

from tests.eval.conftest import bench, model, one_thread, settings, subject

__all__ = ["bench", "model", "one_thread", "settings", "subject"]
