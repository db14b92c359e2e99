"""Families of which no trained model is at hand, in vLLM: ids of random models are those of `fastervlm.prune`."""

from itertools import pairwise

import pytest

from tests.support.vllm_engine import mixed, pruned, rounds_of, served
from tests.support.vllm_random import checkpoint, questions

pytestmark = pytest.mark.vllm

COUNTS = (1, 5, 16)  # of 16 tokens of a tile
ENGINES = {
    "chunked prefill": {"max_num_batched_tokens": 80, "enable_prefix_caching": False},
    "prefix caching": {"enable_prefix_caching": True},
}


@pytest.mark.parametrize("name", [pytest.param("chunked prefill", marks=pytest.mark.slow), "prefix caching"])
def test_internvl_answers_as_under_prune(name, tmp_path):
    """Every K in one server, side by side in its batches; then prompts with two pictures; then the first ones again."""
    model = checkpoint("internvl", tmp_path / "model")
    one = questions("internvl", tmp_path / "pictures", 24)
    image = "<IMG_CONTEXT>"
    two = [
        {"prompt": each["prompt"].replace(image, f"{image} and {image}"), "images": each["images"] + other["images"]}
        for each, other in pairwise(one)
    ]
    asks, limits = [one, two, one[:8]], {"limit_mm_per_prompt": {"image": 2}, "max_model_len": 1024}
    rounds = [mixed(each, COUNTS) for each in asks]
    found = rounds_of(served(model, rounds, tmp_path, {"visual_tokens": 1.0}, **{**limits, **ENGINES[name]}))
    for got, requests in zip(found, asks, strict=True):
        for place, keep in enumerate(COUNTS):
            wanted = pruned(model, requests, keep)
            assert len({tuple(ids) for ids in wanted}) > len(requests) // 2
            assert [each["ids"] for each in got[place :: len(COUNTS)]] == wanted, keep
    cached = sum(each["cached"] > 0 for each in found[2])
    assert (cached == 24) == (name != "chunked prefill")
