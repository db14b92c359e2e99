"""Visual tokens that are groups of patches: a made-up connector that joins 2 x 2 neighbours, alone and in a whole model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastervlm
from encoders import UserError, wrap
from fastervlm.families.encoding import flat, scored
from fastervlm.families.llava import Llava
from fastervlm.families.pruning import Pruning
from fastervlm.prune_model import PruneHandle
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.choice import choose, counts_for
from fastervlm.selection.groups import blocks, grouped
from fastervlm.selection.method import traits
from tests.support import tiny
from tests.support.checks import close
from tests.support.plain import IMAGE_ID

SIDE, GROUPS = 2, tiny.PATCHES // 4
ALSO = sorted({block for method in fastervlm.METHODS.values() for block in traits(method).also})
IN_FRONT = [name for name, method in fastervlm.METHODS.items() if not (traits(method).in_llm or traits(method).resizes)]


class Shuffle(nn.Module):
    """Joins the channels of 2 x 2 neighbours, as pixel shuffle does, then projects; by hand, from all patches (B, N, C)."""

    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(4 * width, out)

    def forward(self, patches):
        rows = round(patches.shape[1] ** 0.5)
        found = []
        for row in range(0, rows, SIDE):
            for column in range(0, rows, SIDE):
                places = [(row + down) * rows + column + right for down in range(SIDE) for right in range(SIDE)]
                found.append(torch.cat([patches[:, place] for place in places], dim=-1))
        return self.linear(torch.stack(found, dim=1))


@pytest.fixture(scope="module")
def model():
    """A LLaVA-1.5 with that connector: a picture takes four placeholders."""
    torch.manual_seed(0)
    model = tiny.llava()
    model.model.multi_modal_projector = Shuffle(32, model.config.text_config.hidden_size)
    return model.eval()


class Shuffled(Llava):
    """How such a model encodes pictures."""

    def encode(self, model, pruning, call):
        patches = scored(model, pruning, call, call["pixel_values"])
        side = patches.grid[0] // SIDE
        groups = grouped(patches, blocks(patches.grid, SIDE), (side, side), lambda x: x.flatten(2))
        choice = choose(groups, counts_for(pruning.budget, groups.scores), pruning.method)
        return {"image": flat(choice, model.model.multi_modal_projector.linear)}


def patches_of(model, pixel_values):
    return wrap(model.model.vision_tower, also=ALSO)(pixel_values)


def groups_of(patches):
    side = patches.grid[0] // SIDE
    return grouped(patches, blocks(patches.grid, SIDE), (side, side), lambda x: x.flatten(2))


def by_hand(model, pixel_values):
    """All groups projected (B, G, D) and their scores (B, G), from the whole eager tower."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        told = tower(pixel_values, output_hidden_states=True, output_attentions=True)
        features = told.hidden_states[-2][:, 1:]
        row = told.attentions[-2][:, :, 0, 1:].mean(1)
        tower.set_attn_implementation(before)
        side = round(row.shape[1] ** 0.5)
        scores = row.view(-1, side // 2, 2, side // 2, 2).mean(dim=(2, 4)).flatten(1)
        return model.model.multi_modal_projector(features), scores


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(3, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_scores_features_and_keys_are_those_of_the_members(model, pictures):
    patches = patches_of(model, pictures)
    found, (projected, scores) = groups_of(patches), by_hand(model, pictures)
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-7)
    close(model.model.multi_modal_projector.linear(found.features()), projected)
    index = torch.tensor([[1, 3], [0, 2], [2, 3]])
    close(found.features(index), found.features()[torch.arange(3)[:, None], index])
    keys, side = patches.keys(), patches.grid[0]
    for group in range(GROUPS):
        row, column = (2 * part for part in divmod(group, side // 2))
        places = [row * side + column, row * side + column + 1, (row + 1) * side + column, (row + 1) * side + column + 1]
        assert torch.equal(found.keys()[:, :, group], torch.cat([keys[:, :, place] for place in places], dim=-1))


@torch.no_grad()
def test_only_patches_of_kept_groups_are_finished(model, pictures):
    patches, asked = patches_of(model, pictures), []

    def finish(index, *cls):
        asked.append(None if index is None else index.tolist())
        return patches.finish(index, *cls)

    found = groups_of(replace(patches, finish=finish))
    found.features(torch.tensor([[0], [1], [3]]))
    assert asked == [[[0, 1, 4, 5], [2, 3, 6, 7], [10, 11, 14, 15]]]


@torch.no_grad()
@pytest.mark.parametrize("method", IN_FRONT)
def test_every_method_chooses_among_groups_and_each_picture_for_itself(model, pictures, method):
    chosen, project = fastervlm.METHODS[method], model.model.multi_modal_projector.linear
    together = choose(groups_of(patches_of(model, pictures)), [2] * 3, chosen)
    assert together.counts == [2] * 3
    tokens, _ = together.project(project)
    for row, picture in enumerate(pictures):
        alone = choose(groups_of(patches_of(model, picture[None])), [2], chosen)
        assert torch.equal(alone.index[0], together.index[row])
        close(alone.project(project)[0], tokens[2 * row : 2 * row + 2])


@torch.no_grad()
def test_windows_are_of_groups(model, pictures):
    choice = choose(groups_of(patches_of(model, pictures)), [1, 1, 2], fastervlm.METHODS["cls"], windows=[(0, 2, 1, 2)] * 3)
    assert not choice.mask[:, [0, 2]].any()
    assert choice.counts == [1, 1, 2]
    projected, _ = by_hand(model, pictures)
    close(choice.project(model.model.multi_modal_projector.linear)[0], projected[choice.mask])


def test_groups_of_one_patch_are_the_patches(model, pictures):
    patches = patches_of(model, pictures)
    found = grouped(patches, blocks(patches.grid, 1), patches.grid, lambda x: x.flatten(2))
    assert torch.equal(found.scores, patches.scores)
    assert torch.equal(found.features(), patches.features())
    assert torch.equal(found.keys(), patches.keys())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda patches: blocks((3, 4), 2), "A grid of 3 x 4 patches does not part into blocks of 2 x 2."),
        (
            lambda patches: grouped(patches, blocks(patches.grid, 2), (3, 2), torch.clone),
            "4 groups .* do not fill a grid of 3 x 2",
        ),
        (lambda patches: groups_of(patches).features(cls=True), "belongs to no group of patches"),
    ],
)
def test_what_does_not_fit_is_refused(model, pictures, make, sentence):
    with pytest.raises(UserError, match=sentence):
        make(patches_of(model, pictures))


# --- in a whole model: prompts with four placeholders a picture


def prompt(pictures=2):
    ids = [1, *([5, *[IMAGE_ID] * GROUPS, 7] * pictures), 9, 11]
    pixels = torch.randn(pictures, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(2))
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": pixels,
    }


@torch.no_grad()
def test_keeping_every_group_is_the_stock_model_bit_for_bit(model):
    call = prompt()
    stock = model(**call).logits, model.generate(**call, max_new_tokens=5, do_sample=False)
    with PruneHandle(model, Shuffled(), Pruning(TokenBudget(GROUPS), fastervlm.METHODS["cls"])):
        assert torch.equal(model(**call).logits, stock[0])
        assert torch.equal(model.generate(**call, max_new_tokens=5, do_sample=False), stock[1])


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_fewer_groups_are_all_of_them_indexed_afterwards(model, keep):
    call = prompt()
    projected, scores = by_hand(model, call["pixel_values"])
    kept = scores.topk(keep).indices.sort().values
    embeds = model.get_input_embeddings()(call["input_ids"])[0]
    shown = (call["input_ids"][0] == IMAGE_ID).nonzero()[:, 0].view(-1, GROUPS)
    stays = torch.ones(len(embeds), dtype=torch.bool)
    for places, features, index in zip(shown, projected, kept, strict=True):
        embeds[places] = features
        stays[places] = False
        stays[places[index]] = True
    expected = model(inputs_embeds=embeds[stays][None]).logits
    with PruneHandle(model, Shuffled(), Pruning(TokenBudget(keep), fastervlm.METHODS["cls"])) as handle:
        close(model(**call).logits, expected)
    assert [trace.index.tolist() for trace in handle.trace] == kept.tolist()
    assert all(trace.grid == (2, 2) for trace in handle.trace)
