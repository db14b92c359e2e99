"""Each selector against its definition taken literally, on ordinary and on hostile pictures; and a batch against singles."""

from functools import partial

import numpy as np
import pytest
import torch

from encoders import ScoredPatches
from encoders.base import gather_rows
from fastervlm import METHODS, CDPruner, InLLM, Scope, UserError, UserTypeError, VisPruner
from fastervlm.methods import covering, vispruner
from fastervlm.methods.cdpruner import likeliest, scaled
from fastervlm.methods.lookup import get_method
from fastervlm.methods.similarity import cosines, whole_cosines
from tests.support import literal
from tests.support.literal import Picture

NEW = [*literal.METHODS, *literal.MERGING]


def patches_of(features, attention=None, keys=None, seed=0):
    """Patches with features (B, N, C); attention (B, M, N) and keys (B, M, N, d) are random if they are not given."""
    random = torch.Generator().manual_seed(seed)
    batch, count = features.shape[:2]
    attention = torch.rand(batch, 2, count, generator=random) if attention is None else attention
    keys = torch.randn(batch, 2, count, 3, generator=random) if keys is None else keys
    rows = max(rows for rows in (1, 2, 3, 24) if count % rows == 0)
    return ScoredPatches(
        *(attention, (rows, count // rows), torch.arange(batch), lambda index: gather_rows(features, index), lambda: keys),
        other_blocks=other_blocks(attention),
    )


def other_blocks(attention):
    """Scores of some other blocks, made of those of the feature block: ties stay, and pictures are their own."""
    return {name: partial(attention.roll, shift, -1) for shift, name in enumerate((0.25, 0.375, 2), start=1)}


def whole(shape, high, seed):
    """Whole numbers -high .. high."""
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def hostile():
    """One picture each: features, attention and keys."""
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        yield f"random {seed}", torch.randn(1, 11, 5, generator=random), None, None
        ties = whole((1, 12, 3), 1, seed), whole((1, 2, 12), 1, seed).abs(), whole((1, 2, 12, 2), 1, seed)
        yield f"many ties {seed}", *ties
        scales = 2.0 ** torch.randint(-60, 60, (1, 10, 1), generator=random)
        yield f"huge and small {seed}", whole((1, 10, 4), 3, seed) * scales, None, whole((1, 2, 10, 2), 2, seed)
    yield "all equal", torch.ones(1, 9, 4), torch.full((1, 2, 9), 0.1), torch.ones(1, 2, 9, 3)
    yield "all zero", torch.zeros(1, 9, 4), torch.zeros(1, 2, 9), torch.zeros(1, 2, 9, 3)
    pairs = whole((1, 6, 4), 4, 9).repeat(1, 2, 1)
    yield "each twice", pairs, whole((1, 2, 12), 3, 9).abs(), pairs[:, None, :, :2].repeat(1, 2, 1, 1)
    some = whole((1, 10, 4), 3, 5)
    some[:, ::3] = 0
    yield "some zero", some, None, some[:, None].repeat(1, 2, 1, 1)
    yield "opposites", torch.cat((pairs[:, :5], -pairs[:, :5]), dim=1), None, None
    near = whole((1, 9, 4), 1, 7)
    near[..., 0] = 100
    near[:, 5:7] = near[:, :1]
    yield "nearly dependent", near, whole((1, 2, 9), 3, 7).abs(), None
    yield "one patch", whole((1, 1, 4), 3, 1), None, None
    yield "two patches", whole((1, 2, 4), 3, 2), None, None


HOSTILE = {name: patches_of(features, attention, keys) for name, features, attention, keys in hostile()}
each_picture = pytest.mark.parametrize("name", HOSTILE)


# Settings other than the default, under the name that the method and its definition both call them.
def follows_its_definition(name, patches, picture, k, **settings):
    kept = get_method(name, **settings)(patches, k)
    if name in literal.METHODS:
        assert kept.index.tolist() == [literal.METHODS[name](picture, k, **settings)], k
        assert kept.weights is None
        return
    places, rows = literal.MERGING[name](picture, k, **settings)
    assert kept.index.tolist() == [places], k
    expected = literal.mixtures(rows)
    found = torch.eye(picture.size)[kept.index] if kept.weights is None else kept.weights
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=1e-30)
    assert torch.isfinite(kept.rows(patches)).all()
    torch.testing.assert_close(kept.rows(patches)[0].double(), expected @ patches.features()[0].double(), rtol=1e-5, atol=1e-4)


@each_picture
@pytest.mark.parametrize("method", NEW)
def test_what_is_kept_is_what_the_definition_says(method, name):
    patches, picture = HOSTILE[name], Picture(HOSTILE[name])
    # Determinants by cofactors take long.
    for k in range(1, min(picture.size, 6) + 1 if method == "cdpruner" else picture.size + 1):
        follows_its_definition(method, patches, picture, k)


@each_picture
@pytest.mark.parametrize("method", literal.SETTINGS)
def test_other_settings_follow_the_definition_too(method, name):
    patches, picture = HOSTILE[name], Picture(HOSTILE[name])
    for setting, values in literal.SETTINGS[method].items():
        for value in values:
            for k in {1, (picture.size + 1) // 2, max(1, picture.size - 1)}:
                follows_its_definition(method, patches, picture, k, **{setting: value})


def test_every_method_has_its_definition():
    """The first four are held to theirs in test_methods.py, the next two in test_resolution.py."""
    choosing = {name for name, method in METHODS.items() if not isinstance(method, InLLM)}
    assert choosing - {"cls", "cls-lowest", "random", "grid", "resize", "pool"} == set(NEW)


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_leave_in_many_rounds(seed):
    patches = patches_of(whole((1, 45, 4), 2 + 10 * seed, seed), seed=seed)
    for k in (1, 2, 5, 12, 29):
        assert VisPruner()(patches, k).index.tolist() == [literal.vispruner(Picture(patches), k)]


@pytest.mark.parametrize("method", ["holov", "scope"])
def test_parts_of_several_patches(method):
    """More patches than HoloV has runs; with few that stand out, a run may be full before K is reached."""
    for power in (1, 12):
        attention = torch.rand(1, 2, 53, generator=torch.Generator().manual_seed(power)) ** power
        patches = patches_of(whole((1, 53, 4), 5, power), attention)
        for k in (17, 40):
            follows_its_definition(method, patches, Picture(patches), k)


@each_picture
@pytest.mark.parametrize("kind", ["some equal", "falling", "hardly any"])
@pytest.mark.parametrize("unit", [1.0, 1e-9, -40.0])
def test_the_determinant_grows_most_at_each_step(name, unit, kind):
    """With relevance, in the order of choice; the relevance of some patches is equal, of one picture all."""
    features = HOSTILE[name].features()
    picture = Picture(HOSTILE[name])
    steps = torch.randperm(picture.size, generator=torch.Generator().manual_seed(3))
    relevance = {
        "some equal": whole((1, picture.size), 2, 3),
        "falling": 0.1 ** steps[None].float() * (1 if unit > 0 else -1),
        "hardly any": 3e-6 * steps[None] + steps[None].eq(picture.size // 2),
    }[kind] * unit
    chosen = likeliest(cosines(features), scaled(relevance.double()), HOSTILE[name].scores, min(5, picture.size))
    assert chosen.tolist() == [literal.cdpruner(picture, min(5, picture.size), literal.exact(relevance[0].double()))]
    method = CDPruner(lambda _: relevance)
    for k in range(1, min(5, picture.size) + 1):
        expected = range(k) if k == picture.size else chosen[0, :k].sort().values.tolist()
        assert method(HOSTILE[name], k).index.tolist() == [list(expected)]


def big(batch=5, count=60, width=32):
    """Pictures among which some patches are equal, nearly equal or zero."""
    random = torch.Generator().manual_seed(1)
    features = torch.randn(batch, count, width, generator=random)
    features[:, 1::7] = features[:, ::7][:, : len(range(1, count, 7))]
    features[:, 2::9] = features[:, 3::9][:, : len(range(2, count, 9))] * (1 + 1e-7)
    features[:, 5] = 0
    keys = features.unflatten(-1, (4, -1)).transpose(1, 2)
    attention = (torch.rand(batch, 4, count, generator=random) * 8).round() / 8
    return features, attention, keys


@pytest.mark.parametrize("method", NEW)
def test_a_batch_is_its_pictures_one_by_one(method):
    """To the last bit, whatever the order, whatever the layout in memory, in half precision too."""
    features, attention, keys = big()
    spread = torch.stack((features, features), dim=-1)[..., 0]
    for dtype in (torch.float32, torch.bfloat16):
        own = features.to(dtype)
        together = patches_of(own, attention, keys.to(dtype))
        for k in (1, 7, 30, 59, 60):
            kept = METHODS[method](together, k)
            rows = kept.rows(together)
            backwards = METHODS[method](patches_of(spread.to(dtype).flip(0), attention.flip(0), keys.to(dtype).flip(0)), k)
            assert torch.equal(backwards.index.flip(0), kept.index)
            for i in range(len(features)):
                alone = METHODS[method](patches_of(own[i : i + 1], attention[i : i + 1], keys[i : i + 1].to(dtype)), k)
                assert torch.equal(alone.index[0], kept.index[i])
                assert (alone.weights is None) == (kept.weights is None)
                if kept.weights is not None and alone.weights is not None:
                    assert torch.equal(alone.weights[0], kept.weights[i])
                    assert torch.equal(alone.rows(patches_of(own[i : i + 1]))[0], rows[i])
                    assert torch.equal(backwards.weights.flip(0), kept.weights)  # type: ignore[union-attr]


def test_relevance_is_scaled_in_each_picture_for_itself():
    features, attention, _ = big()
    attention = attention * torch.tensor([1.0, 0.01, 30.0, 0.5, 2.0])[:, None, None]
    method = CDPruner(lambda patches: patches.scores)
    kept = method(patches_of(features, attention), 12).index
    for i in range(len(features)):
        assert torch.equal(method(patches_of(features[i : i + 1], attention[i : i + 1]), 12).index[0], kept[i])


def vispruner_in_double(similar, scores, k):
    """The definition once more, quick enough for real sizes, given similarities (N, N) and scores (N,) in float64."""
    order = np.argsort(-scores, kind="stable")
    kept, rest, count = order[: k // 2], order[k // 2 :], k - k // 2
    while len(rest) > count:
        first, second = rest[::2], rest[1::2]
        likest = similar[np.ix_(first, second)].max(axis=1)
        rest = np.concatenate((first[np.argsort(-likest, kind="stable")[min(8, len(rest) - count) :]], second))
    return sorted([*kept, *rest])


def divprune_in_double(similar, scores, k):
    apart, kept = 1 - similar, []
    np.fill_diagonal(apart, np.inf)
    for _ in range(k):
        nearest = apart[kept or slice(None)].min(axis=0)
        nearest[kept] = -np.inf
        kept.append(int(nearest.argmax()))
    return sorted(kept)


@pytest.mark.parametrize("patches", [144, 576])
@pytest.mark.parametrize(("method", "plainly"), [("vispruner", vispruner_in_double), ("divprune", divprune_in_double)])
def test_the_definition_at_full_size(method, plainly, patches):
    """Random features are never equal but for rounding, so that the same patches stay to the last one."""
    random = torch.Generator().manual_seed(2)
    features, attention = torch.randn(3, patches, 1024, generator=random), torch.rand(3, 16, patches, generator=random)
    pictures = patches_of(features, attention)
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    for k in (29, 64):
        kept = METHODS[method](pictures, k).index.tolist()
        for own, row, scores in zip(kept, unit, pictures.scores.double(), strict=True):
            assert own == plainly((row @ row.T).numpy(), scores.numpy(), k)


@pytest.mark.parametrize("method", NEW)
def test_a_picture_of_full_size_in_a_batch_and_alone(method):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(3, 576, 1024, generator=random)
    keys, attention = features.unflatten(-1, (16, 64)).transpose(1, 2), torch.rand(3, 16, 576, generator=random)
    kept = METHODS[method](patches_of(features, attention, keys), 64)
    alone = METHODS[method](patches_of(features[1:2], attention[1:2], keys[1:2]), 64)
    assert torch.equal(kept.index[1:2], alone.index)
    assert kept.index.shape == (3, 64)
    assert (kept.index[:, 1:] > kept.index[:, :-1]).all()


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_and_lower_precision_around_it_change_nothing(method, autocast):
    features, attention, keys = big(2)
    expected = METHODS[method](patches_of(features, attention, keys), 9)
    learning = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        patches = patches_of(learning, attention.requires_grad_(), keys.requires_grad_())
        kept = METHODS[method](patches, 9)
        rows = kept.rows(patches)
    assert torch.equal(kept.index, expected.index)
    assert kept.weights is None or not kept.weights.requires_grad
    if kept.weights is not None:
        assert torch.equal(kept.weights, expected.weights)  # type: ignore[arg-type]
        rows.sum().backward()
        torch.testing.assert_close(learning.grad, kept.weights.sum(1)[:, :, None].expand_as(features))


def test_similarities_are_in_steps_far_below_what_tells_patches_apart():
    features, _, _ = big(2, 200, 24)
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    own, other = cosines(features), cosines(features, features[:, :50])
    torch.testing.assert_close(own, unit @ unit.mT, rtol=0, atol=2**-40)
    torch.testing.assert_close(own[..., :50], other, rtol=0, atol=2**-40)
    assert torch.equal(own, own.mT)
    assert torch.equal(own * 2**40, (own * 2**40).round())
    assert (own.diagonal(dim1=1, dim2=2) == features.any(dim=2)).all()
    assert torch.equal(whole_cosines(features), (own * 2**30).round().int())


@pytest.mark.parametrize(
    ("method", "value", "kind"),
    literal.REFUSED,
)
def test_settings_out_of_range(method, value, kind):
    with pytest.raises(kind, match=r"\.$"):
        method(value)


@pytest.mark.parametrize(
    ("relevance", "kind", "sentence"),
    [
        (lambda patches: patches.scores[0], UserError, r"must be \(1, 9\), a number for each patch, not \(9,\)\."),
        (lambda patches: patches.scores.tolist(), UserTypeError, r"must give a tensor \(1, 9\), .* not a list\."),
        (lambda patches: None, UserTypeError, r"not a NoneType\."),
        (lambda patches: patches.scores * torch.nan, UserError, r"holds numbers that are infinite or undefined; give finite"),
        (lambda patches: patches.scores.log() * patches.scores / 0, UserError, "infinite or undefined"),
    ],
)
def test_what_is_no_relevance(relevance, kind, sentence):
    with pytest.raises(kind, match=sentence):
        CDPruner(relevance)(HOSTILE["all equal"], 3)


def test_patches_without_gain_go_by_relevance_then_by_score():
    """Two dimensions are spent after two patches; so are those of no dimension at all."""
    relevance = torch.tensor([[0.0, 5, 5, 1, 1, 1, 9, 9]])
    scores = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.1, 0.0, 0.0])
    plane = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [0, 1]]])
    order = likeliest(cosines(plane), scaled(relevance.double()), scores[None], 8)
    assert order.tolist() == [[6, 7, 2, 1, 4, 3, 5, 0]]
    nothing = likeliest(cosines(torch.zeros(1, 8, 2)), torch.ones(1, 8).double(), scores[None], 8)
    assert nothing.tolist() == [[4, 2, 3, 0, 1, 5, 6, 7]]


@pytest.mark.parametrize("kind", ["random", "alike", "ties", "equal"])
@pytest.mark.parametrize("count", [70, 333])
def test_duplicates_are_the_same_however_they_are_found(kind, count, monkeypatch):
    """By whole rows, as of few patches and on a device, and by lists of neighbours, as of many; where lists run out too."""
    random = torch.Generator().manual_seed(count)
    features = {
        "random": torch.randn(2, count, 64, generator=random),
        "alike": 1 + torch.randn(2, count, 64, generator=random) / 1000,
        "ties": whole((2, count, 3), 1, count),
        "equal": torch.ones(2, count, 3),
    }[kind]
    patches = patches_of(features)
    found = {k: VisPruner()(patches, k).index for k in (2, 9, count // 2)}
    monkeypatch.setattr(vispruner, "_MANY", 1)
    for k, index in found.items():
        assert torch.equal(VisPruner()(patches, k).index, index)
    monkeypatch.setattr(vispruner, "_KNOWN", 2)
    assert torch.equal(VisPruner()(patches, 9).index, found[9])


@pytest.mark.parametrize("kind", ["random", "ties", "equal"])
def test_what_is_covered_is_the_same_however_it_is_summed(kind, monkeypatch):
    features = {
        "random": torch.randn(2, 90, 64, generator=torch.Generator().manual_seed(0)),
        "ties": whole((2, 90, 3), 1, 4),
        "equal": torch.ones(2, 90, 3),
    }[kind]
    patches = patches_of(features)
    found = Scope()(patches, 40).index
    monkeypatch.setattr(covering, "_AT_A_TIME", 200)
    assert torch.equal(Scope()(patches, 40).index, found)
    monkeypatch.setattr(covering, "waits", lambda x: True)
    assert torch.equal(Scope()(patches, 40).index, found)


def test_what_is_covered_is_the_same_in_float32_where_differences_would_be_rounded(monkeypatch):
    shares = torch.tensor([[1, 2**24, 2**24 + 2], [2**26, 0, 0], [0, 1, 0]], dtype=torch.float)
    assert covering.covering(shares, 2).tolist() == [0, 2]
    monkeypatch.setattr(covering, "waits", lambda x: True)
    assert covering.covering(shares, 2).tolist() == [0, 2]
