"""Qwen2.5-VL in vLLM: ids are those of `fastervlm.prune`, with pictures numbered along rows and columns."""

import pytest

from fastervlm.embedded import QWEN_MODEL
from tests.support.vllm_engine import asked, mixed, paired, pruned, rounds_of, served

pytestmark = pytest.mark.vllm

COUNTS = (14, 58, 144)
ENGINES = {
    "chunked prefill": {"max_num_batched_tokens": 40, "enable_prefix_caching": False},
    "prefix caching": {"enable_prefix_caching": True},
}


@pytest.mark.parametrize("name", ENGINES)
def test_ids_are_those_of_prune(name, tmp_path):
    """Every K in one server, side by side in its batches; then prompts with two pictures; then the first ones again."""
    one, two = asked(QWEN_MODEL, 60), paired(QWEN_MODEL, 20)
    asks, limits = [one, two, one[:10]], {"limit_mm_per_prompt": {"image": 2}}
    rounds = [mixed(each, COUNTS) for each in asks]
    found = rounds_of(served(QWEN_MODEL, rounds, tmp_path, {"visual_tokens": 1.0}, **limits, **ENGINES[name]))
    for got, requests in zip(found, asks, strict=True):
        for place, keep in enumerate(COUNTS):
            wanted = pruned(QWEN_MODEL, requests, keep)
            assert len({tuple(ids) for ids in wanted}) > 3
            assert [each["ids"] for each in got[place :: len(COUNTS)]] == wanted, keep
    cached = sum(each["cached"] > 0 for each in found[2])
    assert (cached == 30) == (name != "chunked prefill")
