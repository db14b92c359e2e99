"""How many tokens a picture of LLaVA-OneVision takes, before it is seen: many crops have a map that is resized."""

import math
import random

import pytest
import torch

import fastervlm
from fastervlm.families.llava_next.crops import cut
from fastervlm.families.registry import family_of_type
from fastervlm.families.resized import most_kept, num_kept, resized_to
from tests.support import family_cases as cases
from tests.support import tiny_families

SIDE = 27  # patches along a crop of the published checkpoints
RANDOM = random.Random(0)


def side():
    return int(math.exp(RANDOM.uniform(math.log(30), math.log(4000))))


MOST = [(3351, 573), (1876, 797), (803, 1904), (1322, 1089)]  # found by looking at many
SIZES = [*MOST, *((size, size) for size in (20, 384, 900, 1153, 1400, 4000))]
SIZES += [(side(), side()) for _ in range(300)]


@pytest.fixture(scope="module")
def config():
    """That of a published checkpoint."""
    family = family_of_type("llava_onevision")
    tower = {"image_size": 384, "patch_size": 14}
    return family.config(*family.configs(tower, {}), {"image": cases.IMAGE_ID, "video": cases.VIDEO_ID})


def kept(config, size, keep, newline):
    return num_kept(cut(size, config, "native"), config.vision_aspect_ratio, keep, newline)


def test_all_tokens_are_those_that_the_processor_of_transformers_counts(config):
    processor = family_of_type("llava_onevision").processor(config, tiny_families.tokenizer(*tiny_families.LLAVA))
    told = [processor._get_number_of_features(*size, 384, 384) for size in SIZES]
    assert [kept(config, size, SIDE**2, "all") for size in SIZES] == told
    resized = [resized_to(cut(size, config, "native"), config.vision_aspect_ratio) for size in SIZES]
    assert 30 < resized.count(None) < len(SIZES) - 30


@pytest.mark.parametrize("newline", ["all", "none"])
@pytest.mark.parametrize("keep", [1, 73, SIDE**2])
def test_no_picture_takes_more_than_the_most(config, keep, newline):
    found, most = [kept(config, size, keep, newline) for size in SIZES], most_kept(config, keep, newline)
    assert max(found) <= most
    assert most < 1.03 * max(found)


@torch.no_grad()
@pytest.mark.parametrize("newline", ["all", "none"])
@pytest.mark.parametrize(
    ("seed", "case"), [(0, "onevision pictures"), (1, "onevision pictures resized"), (0, "onevision pictures resized")]
)
def test_they_are_as_many_as_reach_the_language_model(case, seed, newline):
    case = cases.CASES[case]
    model = cases.random(case.make)
    batch = cases.prompt(case, model, [[seed]])
    with fastervlm.prune(model, 5, newline=newline) as handle:
        model(**batch)
    (trace,) = handle.trace
    (size,) = batch["image_sizes"].tolist()
    assert trace.num_tokens == kept(model.config, size, 5, newline)
