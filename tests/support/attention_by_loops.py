"""What visual tokens receive, written down as loops over eager attention of the stock model."""

import copy

import numpy as np
import torch

from tests.support.plain import IMAGE_ID, LAYER


@torch.no_grad()
def eager_maps(model, inputs):
    """Each layer's map (T, T) as the stock model computes it, a mean over heads."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    return [layer[0].mean(dim=0).double().numpy() for layer in eager(**inputs, output_attentions=True).attentions]


@torch.no_grad()
def cls_scores(tower, pixels):
    """(B, N): the [CLS] row of the feature block, a mean over heads."""
    eager = copy.deepcopy(tower)
    eager.set_attn_implementation("eager")
    return eager(pixels, output_attentions=True).attentions[LAYER][:, :, 0, 1:].mean(dim=1)


def of_reference(attention, start, patches):
    """The four kinds of one picture behind `start` tokens, as the reference's scripts have them; (4, N)."""
    a = attention[start:, start : start + patches]
    n = len(a)
    j = np.arange(patches)
    return np.stack((
        a.sum(axis=0) / ((patches - j) + (n - patches)),
        a[:patches].sum(axis=0) / (patches - j),
        a[patches:-1].sum(axis=0) / (n - patches),
        a[-1],
    ))  # fmt: skip


def by_loops(attention, ids, placeholders=(IMAGE_ID,)):
    """The same token by token, wherever visual tokens stand; (4, V)."""
    count = len(ids)
    visual = [place for place, token in enumerate(ids) if token in placeholders]
    text = [place for place in range(visual[0], count) if place not in visual]
    found = []
    for place in visual:
        seen_by = [row for row in range(count) if row >= place]
        words = [row for row in text if row > place]
        patches = [row for row in visual if row >= place]
        found.append([
            sum(attention[row, place] for row in range(visual[0], count)) / len(seen_by),
            sum(attention[row, place] for row in visual) / len(patches),
            sum(attention[row, place] for row in words if row != count - 1) / len(words),
            attention[-1, place],
        ])  # fmt: skip
    return np.array(found).T


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=1e-6)
