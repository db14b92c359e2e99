"""What each method keeps, against plain loops and counts."""

import dataclasses
import random
import threading

import pytest
import torch

import fastervlm
from encoders.base import image_key
from fastervlm import METHODS, ClsAttention, KeptTokens, RandomTokens, ScoredPatches, UniformGrid, UserError
from fastervlm.methods.baselines import lattice
from fastervlm.methods.lookup import get_method
from fastervlm.selection.method import traits


def scored(attention, grid=None, image_keys=None):
    """Patches with a [CLS] attention (B, M, N) and, if they matter, keys of their images; features and keys are the same."""
    batch, heads, patches = attention.shape
    image_keys = torch.arange(batch) if image_keys is None else image_keys
    keys = torch.randn(batch, heads, patches, 8, generator=torch.Generator().manual_seed(patches))
    features = keys.transpose(1, 2).flatten(2)
    others = {block: lambda: attention.flip(2) for block in (0.25, 0.375)}
    grid = grid or (1, patches)
    return ScoredPatches(attention, grid, image_keys, lambda index: features, lambda: keys, other_blocks=others)


def blank(rows, columns, keys):
    return scored(torch.zeros(len(keys), 1, rows * columns), (rows, columns), torch.as_tensor(keys))


def noise(batch=3, heads=4, patches=36, seed=0):
    return torch.rand(batch, heads, patches, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 7, 35, 36])
def test_cls_keeps_the_highest_mean_over_heads(k):
    attention = noise()
    means = [[sum(row[i] for row in heads) / len(heads) for i in range(36)] for heads in attention.tolist()]
    best = [sorted(sorted(range(36), key=lambda i, row=row: -row[i])[:k]) for row in means]
    worst = [sorted(sorted(range(36), key=lambda i, row=row: row[i])[:k]) for row in means]
    assert ClsAttention()(scored(attention), k).index.tolist() == best
    assert METHODS["cls-lowest"](scored(attention), k).index.tolist() == worst


@pytest.mark.parametrize("method", [ClsAttention(), ClsAttention(lowest=True)])
def test_ties_go_to_the_earlier_patch(method):
    assert method(scored(torch.full((2, 3, 9), 0.1)), 4).index.tolist() == [[0, 1, 2, 3]] * 2


EXACT = [n for n, each in METHODS.items() if not (traits(each).in_llm or traits(each).resizes or traits(each).other_counts)]


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("k", [1, 5, 58, 575, 576])
def test_every_method_keeps_k_distinct_patches_in_raster_order(name, k):
    kept = METHODS[name](scored(noise(2, 2, 576), (24, 24)), k)
    assert isinstance(kept, KeptTokens)
    assert kept.num_patches == 576
    for row in kept.index.tolist():
        assert len(row) == k
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < 576


def test_random_does_not_depend_on_the_batch_nor_on_anything_global():
    keys = image_key(noise(5, 3, 64, seed=1))
    together = RandomTokens(3)(blank(8, 8, keys), 20).index
    torch.manual_seed(123)
    random.seed(5)
    for i, key in enumerate(keys):
        assert torch.equal(RandomTokens(3)(blank(8, 8, key[None]), 20).index[0], together[i])
    assert torch.equal(RandomTokens(3)(blank(8, 8, keys.flip(0)), 20).index.flip(0), together)
    state = torch.get_rng_state()
    RandomTokens()(blank(8, 8, keys), 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_is_the_same_for_ever():
    """On every device, in every version: whole numbers alone decide. A list of numbers says so best."""
    kept = RandomTokens(seed=0)(blank(4, 4, [0, 1, -(2**63)]), 4).index.tolist()
    assert kept == [by_hand(key, 0, 16, 4) for key in (0, 1, -(2**63))]
    assert RandomTokens(seed=7)(blank(4, 4, [12345]), 5).index.tolist() == [by_hand(12345, 7, 16, 5)]


def by_hand(key, seed, patches, k):
    """The same draw with Python's own whole numbers."""

    def mix(x):
        for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27), (0x1E3779B97F4A7C15, 31)):
            x = (x ^ (x >> shift)) * multiplier % 2**64
        return x ^ (x >> 32)

    drawn = [mix((mix((key + mix(p + 1)) % 2**64) + seed) % 2**64) for p in range(patches)]
    signed = [x - 2**64 if x >= 2**63 else x for x in drawn]
    return sorted(sorted(range(patches), key=lambda p: -signed[p])[:k])


def test_random_of_other_seeds_and_pictures_differs():
    by_seed = {tuple(RandomTokens(seed)(blank(8, 8, [42]), 16).index[0].tolist()) for seed in range(-20, 20)}
    by_picture = {tuple(row) for row in RandomTokens()(blank(8, 8, range(40)), 16).index.tolist()}
    assert len(by_seed) == len(by_picture) == 40
    assert len(by_seed | by_picture) >= 79


@pytest.mark.parametrize("vary", ["seeds", "pictures", "distant pictures"])
def test_random_is_uniform(vary):
    """Each patch about equally often, and each pair of patches too."""
    draws, k, patches = 4000, 4, 16
    if vary == "seeds":
        masks = torch.cat([RandomTokens(seed)(blank(4, 4, [99]), k).mask for seed in range(draws)])
    else:
        keys = torch.arange(draws) * (1 if vary == "pictures" else 2**40 + 1)
        masks = RandomTokens()(blank(4, 4, keys), k).mask
    pairs = masks.double().T @ masks.double()
    off = pairs[~torch.eye(patches, dtype=torch.bool)]
    share, pair = k / patches, k * (k - 1) / (patches * (patches - 1))
    assert (pairs.diag() - draws * share).abs().max() < 4.5 * (draws * share * (1 - share)) ** 0.5
    assert (off - draws * pair).abs().max() < 4.5 * (draws * pair * (1 - pair)) ** 0.5


def test_random_in_threads_is_random_alone():
    expected, found = RandomTokens(1)(blank(8, 8, range(6)), 9).index, []
    threads = [threading.Thread(target=lambda: found.append(RandomTokens(1)(blank(8, 8, range(6)), 9).index)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(index, expected) for index in found)


@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (4, 4), (1, 7), (7, 1), (3, 10), (10, 3), (1, 1)])
def test_grid_keeps_exactly_k_for_every_k(grid):
    rows, columns = grid
    for k in range(1, rows * columns + 1):
        index = UniformGrid()(blank(rows, columns, [1, 2]), k).index.tolist()
        assert index[0] == index[1] == sorted(set(index[0]))
        assert len(index[0]) == k
        assert 0 <= index[0][0] <= index[0][-1] < rows * columns


@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (12, 24)])
def test_grid_is_even(grid):
    """The centre of what is kept lies in the middle, halves hold about equally many, and no patch is far from a kept one."""
    rows, columns = grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    for k in range(4, rows * columns + 1):
        kept = places[lattice(rows, columns, k)]
        lines = kept[:, 0].unique(return_counts=True)[1]
        assert lines.max() - lines.min() <= 1
        middle = torch.tensor([(rows - 1) / 2, (columns - 1) / 2]).double()
        spacing = (rows * columns / k) ** 0.5
        assert ((kept.mean(0) - middle).abs() <= 0.25 * spacing + 0.5).all(), k
        assert torch.cdist(places, kept).min(dim=1).values.max() <= 1.5 * spacing + 0.5, k


def test_methods_are_frozen_values():
    for method in METHODS.values():
        assert dataclasses.is_dataclass(method)
        assert method == dataclasses.replace(method)
        hash(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RandomTokens().seed = 1  # type: ignore[misc]


def test_a_method_by_name_with_settings():
    assert get_method("random", seed=3) == RandomTokens(3)
    assert get_method("cls") == ClsAttention()
    assert get_method("cls-lowest") == get_method("cls", lowest=True)
    assert METHODS["random"] == RandomTokens(0)

    def mine(patches, k):
        return KeptTokens.top(patches.scores, k)

    assert get_method(mine) is mine


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("CLS", {}, "There is no method named 'CLS'; choose one of cls, cls-lowest, random, grid, vispruner, visionzip, "),
        ("", {}, "There is no method named ''; choose one of"),
        (None, {}, "method=None is neither a name nor a method; the names are cls, "),
        (3, {}, "method=3 is neither a name nor a method"),
        (RandomTokens, {}, "RandomTokens.* is a class; "),
        ("cls", {"seed": 3}, "The method 'cls' has no setting seed."),
    ],
)
def test_what_is_no_method(method, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        get_method(method, **settings)


def test_methods_are_exported():
    assert all(getattr(fastervlm, type(method).__name__) is type(method) for method in METHODS.values())
