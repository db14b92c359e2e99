"""Tokens interpolated behind the projector, against torch's own interpolation of all patches."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from encoders import ScoredPatches, UserError
from encoders.base import gather_rows
from fastervlm.methods.lookup import get_method
from fastervlm.selection.blends import Blend, remembered
from fastervlm.selection.choice import Choice, choose
from tests.support.checks import one_sentence

SIZES = [((5, 5), (3, 3)), ((27, 27), (14, 14)), ((6, 9), (4, 5)), ((1, 7), (1, 3)), ((9, 1), (2, 1)), ((4, 4), (4, 4))]


def noise(*shape, dtype=torch.float):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def resized(x, old, new):
    """x (B, N, C) by torch, as (B, T, C)."""
    return F.interpolate(x.transpose(1, 2).unflatten(2, old), size=new, mode="bilinear").flatten(2).transpose(1, 2)


def patches_of(old, asked=None, dtype=torch.float):
    """Two pictures; `asked` collects how many patches are finished at a time."""
    count = old[0] * old[1]
    features, attention = noise(2, count, 6, dtype=dtype), noise(2, 3, count).softmax(-1)

    def finish(index, cls=False):
        if asked is not None:
            asked.append(count if index is None else index.shape[1])
        return gather_rows(features, index)

    return features, ScoredPatches(attention, old, torch.arange(2), finish, lambda: features[:, None])


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float, 1e-6), (torch.double, 1e-14)])
def test_scores_and_features_are_resized_as_torch_does(old, new, dtype, close):
    features, patches = patches_of(old, dtype=dtype)
    tokens = Blend.bilinear(old, new).tokens(patches)
    assert tokens.grid == new
    torch.testing.assert_close(tokens.features(), resized(features, old, new), rtol=0, atol=close)
    expected = resized(patches.cls_attention.transpose(1, 2), old, new).transpose(1, 2)
    torch.testing.assert_close(tokens.cls_attention, expected, rtol=0, atol=1e-6)
    index = torch.tensor([[0, 1], [1, 0]]) % (new[0] * new[1])
    assert torch.equal(tokens.features(index), gather_rows(tokens.features(), index))


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("method", ["cls", "coverage"])
def test_chosen_tokens_are_those_of_the_whole_projected_map(old, new, method):
    features, patches = patches_of(old)
    blend, projector = Blend.bilinear(old, new), torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU())
    whole = resized(projector(features), old, new)
    for counts in ([1, 1], [3, 2], [new[0] * new[1]] * 2):
        counts = [min(count, new[0] * new[1]) for count in counts]
        choice = choose(blend.tokens(patches), counts, get_method(method))
        expected = torch.cat([row[mask] for row, mask in zip(whole, choice.mask, strict=True)])
        torch.testing.assert_close(blend.project(patches, choice, projector), expected, rtol=0, atol=1e-6)


def test_few_tokens_finish_few_patches_and_all_are_finished_once():
    asked = []
    _, patches = patches_of((27, 27), asked)
    blend = Blend.bilinear((27, 27), (14, 14))
    blend.project(patches, choose(blend.tokens(patches), [10, 10], get_method("cls")), torch.nn.Identity())
    assert asked == [40]
    asked.clear()
    patches = remembered(patches)
    blend.project(patches, choose(blend.tokens(patches), [10, 10], get_method("coverage")), torch.nn.Identity())
    assert asked == [27 * 27]


def test_merged_tokens_cls_and_keys_are_refused():
    _, patches = patches_of((4, 4))
    blend = Blend.bilinear((4, 4), (2, 2))
    tokens = blend.tokens(patches)
    merged = Choice(tokens, torch.ones(2, 4, dtype=torch.bool), [4, 4], torch.eye(4).expand(2, 4, 4), False)
    for use in (lambda: blend.project(patches, merged, torch.nn.Identity()), tokens.keys, lambda: tokens.features(cls=True)):
        with pytest.raises(UserError, match=r"cannot be merged|come without keys|belongs to no interpolated token") as caught:
            use()
        one_sentence(caught.value)
    assert replace(tokens).grid == (2, 2)
