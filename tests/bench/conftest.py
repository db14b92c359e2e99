"""The tiny model and benchmark of the evaluation's tests, and tiny models of each kind with what they are asked."""

import pytest
import torch

from fastervlm.bench.shapes import get_shape
from fastervlm.bench.workload import Workload
from tests.support.evaluation_fixtures import bench, model, settings, subject

__all__ = ["bench", "model", "settings", "subject", "workloads"]


@pytest.fixture(scope="session")
def workloads():
    """By name of shape, in float32; weights are large enough that scores differ."""
    found = {}
    for name in ("tiny", "tiny-next", "tiny-video"):
        found[name] = Workload.of_shape(get_shape(name), torch.float32, torch.device("cpu"), text_tokens=12)
        with torch.no_grad():
            for parameter in found[name].model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return found
