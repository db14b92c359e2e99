"""Families of which no trained model is at hand, in vLLM: ids of random models are those of `fastervlm.prune`."""

from itertools import pairwise

import pytest

from tests.support.vllm_engine import mixed, pruned, rounds_of, served
from tests.support.vllm_random import SPECIAL, checkpoint, questions

pytestmark = pytest.mark.vllm

# Of 16 tokens of a tile, and of 64 of a crop.
COUNTS = {"internvl": (1, 5, 16), "llava_onevision": (1, 9, 64), "llava with siglip": (1, 9, 64)}
SETTINGS = {"llava_onevision": {"newline": "all"}}
ENGINES = {
    "chunked prefill": {"max_num_batched_tokens": 80, "enable_prefix_caching": False},
    "prefix caching": {"enable_prefix_caching": True},
    "tensor parallel": {"tensor_parallel_size": 2},
}
# Two of them are quick enough for every run of the tests.
EACH = [(kind, name) for kind in COUNTS for name in ENGINES]
QUICK = (("internvl", "prefix caching"), ("llava_onevision", "prefix caching"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow, id=f"{each[0]}-{each[1]}") for each in EACH],
)
def test_ids_are_those_of_prune(kind, name, tmp_path):
    """Every K in one server, side by side in its batches; then prompts with two pictures; then the first ones again.

    At last a clip, which is refused.
    """
    model, counts, settings = checkpoint(kind, tmp_path / "model"), COUNTS[kind], SETTINGS.get(kind, {})
    one, image = questions(kind, tmp_path / "pictures", 24), SPECIAL[kind][0]
    two = [
        {"prompt": each["prompt"].replace(image, f"{image} and {image}"), "images": each["images"] + other["images"]}
        for each, other in pairwise(one)
    ]
    asks, limits = [one, two, one[:8]], {"limit_mm_per_prompt": {"image": 2}, "max_model_len": 1024}
    clip = {"prompt": one[0]["prompt"].replace(image, SPECIAL[kind][1]), "images": [], "clip": [4, 64, 64, 3]}
    rounds, options = [*(mixed(each, counts) for each in asks), [clip]], {"visual_tokens": 1.0, **settings}
    unbound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # two workers on a machine with one NUMA node
    *found, (refused,) = rounds_of(served(model, rounds, tmp_path, options, env=unbound, **{**limits, **ENGINES[name]}))
    for got, requests in zip(found, asks, strict=True):
        for place, keep in enumerate(counts):
            wanted = pruned(model, requests, keep, **settings)
            assert len({tuple(ids) for ids in wanted}) > len(requests) // 2
            assert [each["ids"] for each in got[place :: len(counts)]] == wanted, keep
    cached = sum(each["cached"] > 0 for each in found[2])
    assert (cached == 24) == (name != "chunked prefill")
    assert refused["error"].startswith("At most 0 video(s) may be provided in one prompt.")
