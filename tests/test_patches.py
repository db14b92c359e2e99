"""`prune_patches` on any tower: the kept rows of the whole tower, where they lie, and a pipeline that is not LLaVA."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import fastervlm
from fastervlm import KeptPatches, KeptTokens, TokenBudget, UserError, UserTypeError, prune_patches
from tests.support import towers
from tests.support.checks import one_sentence
from tests.support.towers import TIMM, TOWERS


@pytest.mark.parametrize("keep", [1, 5, 0.5, 1.0, 99, TokenBudget(pruning_rate=0.75)])
@pytest.mark.parametrize(
    "name", ["hf clip", "hf siglip", "open_clip whole model", "open_clip around timm", "timm deit", "eva02"]
)
def test_the_best_patches_of_the_whole_tower(name, keep):
    case = TOWERS[name]
    model, pixel_values = towers.make(case), towers.pixels(case)
    patches, kept = prune_patches(model, pixel_values, keep, score=case.score)
    whole = towers.stock(case, model, pixel_values)
    k = (keep if isinstance(keep, TokenBudget) else TokenBudget(keep)).resolve(16)
    index = whole.attention[2].mean(1).topk(k).indices.sort().values
    assert isinstance(kept, KeptTokens)
    assert torch.equal(kept.index, index)
    assert kept.num_patches == 16
    torch.testing.assert_close(patches, towers.rows(whole.states[2], index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, [1, 3]])
@pytest.mark.parametrize("method", ["grid", "random", fastervlm.ClsAttention(lowest=True)])
def test_layers_and_methods(layer, method):
    case = TOWERS["timm clip"]
    model, pixel_values = towers.make(case), towers.pixels(case)
    patches, kept = prune_patches(model, pixel_values, 4, method=method, select_layer=layer)
    whole = towers.stock(case, model, pixel_values)
    expected = whole.states[3] if layer == -1 else torch.cat([whole.states[1], whole.states[3]], dim=-1)
    torch.testing.assert_close(patches, towers.rows(expected, kept.index), rtol=1e-5, atol=1e-5)
    if not isinstance(method, str):
        assert torch.equal(kept.index, whole.attention[3].mean(1).topk(4, largest=False).indices.sort().values)


@pytest.mark.parametrize("name", ["timm wide", "timm stretched", "open_clip wide", "eva rope in halves", "timm padded"])
def test_positions_and_boxes_say_where_a_patch_lies(name):
    """The pixels of the boxes, cut out and embedded by hand, are the patches as the tower embeds them."""
    case = TOWERS[name]
    rows, columns = case.grid
    model, pixel_values = towers.make(case), towers.pixels(case)
    _, kept = prune_patches(model, pixel_values, 7, method="random")
    assert kept.grid == case.grid
    assert kept.positions.tolist() == [[[i // columns, i % columns] for i in row] for row in kept.index.tolist()]
    embed = model.conv1 if hasattr(model, "conv1") else model.patch_embed.proj
    padded = nn.functional.pad(pixel_values, (0, columns * 16 - case.size[1], 0, rows * 16 - case.size[0]))
    every = embed(padded).flatten(2).transpose(1, 2)
    for picture, patches, index, boxes in zip(padded, every, kept.index, kept.boxes, strict=True):
        cut = torch.stack([picture[:, top:bottom, left:right] for left, top, right, bottom in boxes.tolist()])
        torch.testing.assert_close(embed(cut).flatten(1), patches[index], rtol=1e-5, atol=1e-5)


def test_boxes_leave_the_rest_of_a_picture_that_is_no_whole_number_of_patches():
    tower = towers.make(TOWERS["hf clip"])
    _, kept = prune_patches(tower, torch.randn(1, 3, 31, 40), 1.0, interpolate_pos_encoding=True)
    assert kept.grid == (1, 2)
    assert kept.boxes.tolist() == [[[0, 0, 16, 16], [16, 0, 32, 16]]]


def test_patches_need_not_be_square():
    settings: dict[str, Any] = TIMM | {"patch_size": (16, 8)}
    tower = VisionTransformer(**settings)
    _, kept = prune_patches(tower, torch.randn(1, 3, 64, 64), 1.0)
    assert kept.grid == (4, 8)
    assert kept.positions[0, 9].tolist() == [1, 1]
    assert kept.boxes[0, 9].tolist() == [8, 16, 16, 32]


def test_a_pipeline_of_ones_own():
    """A tower, a projector and a language model: pruned, the model reads what it reads when the patches are picked by hand."""
    case = TOWERS["open_clip"]
    tower, pixel_values = towers.make(case), towers.pixels(case, batch=2)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    model, projector = LlamaForCausalLM(LlamaConfig(**sizes)).eval(), nn.Linear(32, 24)
    words = model.get_input_embeddings()(torch.tensor([[1, 7, 9], [1, 8, 4]]))

    def read(visual):
        return model(inputs_embeds=torch.cat([projector(visual), words], dim=1)).logits[:, -1]

    with torch.no_grad():
        ours = read(prune_patches(tower, pixel_values, keep=4)[0])
    whole = towers.stock(case, tower, pixel_values)
    index = whole.attention[2].mean(1).topk(4).indices.sort().values
    torch.testing.assert_close(ours, read(towers.rows(whole.states[2], index)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, read(whole.states[2]), atol=1e-3)


REFUSED = [
    ({"keep": 0}, UserError, "keep=0 would leave no visual token"),
    ({"method": "best"}, UserError, "no method named 'best'"),
    ({"method": lambda patches, k: patches.scores}, UserError, r"must return KeptTokens with an index of shape \(3, K\)"),
    ({"method": lambda patches, k: KeptTokens(torch.tensor([[3, 1, 2, 0]] * 3), 16)}, UserError, "ascending and each once"),
    ({"pixel_values": [torch.zeros(3, 32, 32)]}, UserTypeError, "pixel_values must be one tensor"),
    ({"tower": nn.Linear(2, 2)}, UserTypeError, "is not a vision tower that can be wrapped"),
    ({"select_layer": 9}, UserError, "select_layer=9 is out of range"),
    ({"score": "pool"}, UserError, "no pooling head with one probe"),
    ({"pixel_values": torch.zeros(3, 64, 64)}, UserError, r"shape \(B, 3, H, W\) are needed"),
    (
        {"interpolate_pos_encoding": True, "pixel_values": torch.zeros(1, 3, 32, 32)},
        UserError,
        "img_size=.* or dynamic_img_size",
    ),
]


@pytest.mark.parametrize(("change", "kind", "sentence"), REFUSED)
def test_what_cannot_be_used_is_refused(change, kind, sentence):
    case = TOWERS["timm clip"]
    call: dict[str, Any] = {"tower": towers.make(case), "pixel_values": towers.pixels(case), "keep": 4} | change
    with pytest.raises(kind, match=sentence) as caught:
        prune_patches(**call)
    one_sentence(caught.value)


def test_kept_patches_are_kept_tokens():
    kept = KeptPatches(torch.tensor([[1, 5]]), 6, (2, 3), (14, 14))
    assert kept.mask.tolist() == [[False, True, False, False, False, True]]
    assert kept.gather(torch.arange(6)[None]).tolist() == [[1, 5]]
    assert kept.positions.tolist() == [[[0, 1], [1, 2]]]
