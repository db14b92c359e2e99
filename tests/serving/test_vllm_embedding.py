"""How many pictures the tower of a pruned model of vLLM reads at a time: never more patches than unpruned."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]

ROWS = 577  # of a picture or crop: [CLS] and its patches


def parts(pictures, budget):
    from fastervlm.serving.vllm_models.embedding import PrunedModel

    class Model(PrunedModel):
        def __init__(self):
            self.encoder_budget = budget
            embeddings = SimpleNamespace(num_positions=ROWS)
            self.vision_tower = SimpleNamespace(vision_model=SimpleNamespace(embeddings=embeddings))

    return [list(range(len(pictures)))[part] for part in Model().parts(pictures)]


def shown(*crops):
    """Pictures in so many crops each; 0 is a picture that is not cut."""
    return [torch.empty(*([count] if count else []), 3, 2, 2) for count in crops]


@pytest.mark.parametrize(
    ("crops", "budget", "expected"),
    [
        ([0] * 5, 2 * ROWS, [[0, 1], [2, 3], [4]]),
        ([0] * 5, 3 * ROWS - 1, [[0, 1], [2, 3], [4]]),
        ([0] * 3, 9 * ROWS, [[0, 1, 2]]),
        ([0] * 3, 1, [[0], [1], [2]]),
        ([3, 1, 5, 1, 1, 1], 4 * ROWS, [[0, 1], [2], [3, 4, 5]]),
        ([9], ROWS, [[0]]),
    ],
)
def test_the_tower_reads_no_more_at_a_time_than_unpruned(crops, budget, expected):
    assert parts(shown(*crops), budget) == expected
