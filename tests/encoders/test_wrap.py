"""Choosing an adapter, the sentences for what cannot be used, and the small types every adapter shares."""

import sys
from functools import partial

import pytest
import torch
import torchvision
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.vision_transformer import Attention, Block, ParallelScalingBlock, ParallelThingsBlock, VisionTransformer
from torch import nn
from transformers import CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from encoders import UserError, UserTypeError, wrap
from encoders.base import ScoredPatches, cls_row, image_key
from tests.support.checks import one_sentence
from tests.support.towers import OPEN_CLIP, TIMM


def torchvision_vit():
    """A class of the same name in a library that is not supported."""
    return torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 16)


class OwnOpenClipBlock(ResidualAttentionBlock):
    """A user's block, which may compute anything."""


def own_open_clip_block():
    tower = OpenClipViT(**OPEN_CLIP)
    tower.transformer.resblocks[0] = OwnOpenClipBlock(OPEN_CLIP["width"], OPEN_CLIP["heads"])
    return tower


def test_importing_needs_no_library_of_towers():
    names = [name for name in sys.modules if name.split(".")[0] == "encoders"]
    assert names
    libraries = [sys.modules.get(name) for name in ("transformers", "open_clip", "timm")]
    assert not any(module in libraries for name in names for module in vars(sys.modules[name]).values() if module is not None)


def test_a_subclass_of_a_tower_is_a_tower(make_tower, pixels):
    tower = make_tower()
    expected = wrap(tower)(pixels).scores
    tower.__class__ = type("MyTower", (type(tower),), {})
    assert torch.equal(wrap(tower)(pixels).scores, expected)


def siglip(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8, **changes))


CHOICES = (
    r"has no \[CLS\] token to score its patches by; it can be wrapped with score='pool', .* score='received', .* score='norm', "
)
NO_CLS = r"has no \[CLS\] token to score its patches by; it can be wrapped with score='received', .* score='norm', "
NO_PROBE = r"has no pooling head with one probe to score its patches by; it can be wrapped with score='received', "
ONLY_CLS = r"has no pooling head with one probe to score its patches by; it can be wrapped with score='cls', "


@pytest.mark.parametrize(
    ("make", "score", "sentence"),
    [
        (siglip, "cls", CHOICES),
        (partial(siglip, vision_use_head=False), "cls", NO_CLS),
        (partial(siglip, vision_use_head=False), "pool", NO_PROBE),
        (partial(VisionTransformer, **TIMM, class_token=False, global_pool="map"), "cls", CHOICES),
        (partial(VisionTransformer, **TIMM, class_token=False, global_pool="avg"), "cls", NO_CLS),
        (partial(VisionTransformer, **TIMM, class_token=False, reg_tokens=2, global_pool="avg"), "cls", NO_CLS),
        (partial(VisionTransformer, **TIMM), "pool", ONLY_CLS),
        (partial(VisionTransformer, **TIMM, global_pool="prr"), "pool", ONLY_CLS),
        (partial(OpenClipViT, **OPEN_CLIP, attentional_pool=True), "pool", ONLY_CLS),
        (siglip, "best", "score='best' is not known; choose one of cls, pool, received, norm"),
        (siglip, None, "score=None is not known; choose one of cls, pool, received, norm"),
    ],
)
def test_a_score_that_a_tower_cannot_give_is_refused(make, score, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        wrap(make(), score=score)
    one_sentence(caught.value)


def test_the_probe_scores_at_any_layer_even_the_embeddings():
    pixel_values = torch.randn(2, 3, 16, 16)
    tower = siglip()
    patches = wrap(tower, select_layer=0, score="pool")(pixel_values)
    assert torch.equal(patches.features(), tower.embeddings(pixel_values))
    assert torch.equal(patches.scores, wrap(tower, select_layer=-1, score="pool")(pixel_values).scores)


@pytest.mark.parametrize(
    "other", [nn.Linear(2, 2), "openai/clip-vit-large-patch14-336", None, torchvision_vit(), CLIPVisionModel]
)
def test_another_object_is_refused(other):
    with pytest.raises(UserTypeError, match=r"is not a vision tower .* supported towers are CLIPVisionModel") as caught:
        wrap(other)
    one_sentence(caught.value)


# A user's own, which may compute anything.
OwnBlock = type("Block", (Block,), {"__module__": __name__})
OwnAttention = type("Attention", (Attention,), {"__module__": __name__})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            partial(VisionTransformer, **TIMM, block_fn=ParallelThingsBlock),
            "ParallelThingsBlock with attention of class builtins.NoneType",
        ),
        (partial(VisionTransformer, **TIMM, block_fn=ParallelScalingBlock), "ParallelScalingBlock with .*; timm.Block, "),
        (partial(VisionTransformer, **TIMM, attn_layer="diff"), "Block with attention of class timm.DiffAttention"),
        (partial(VisionTransformer, **TIMM, block_fn=OwnBlock), "test_wrap.Block with attention of class timm.Attention"),
        (partial(VisionTransformer, **TIMM, attn_layer=OwnAttention), "timm.Block with attention of class test_wrap.Attention"),
        (partial(OpenClipViT, **OPEN_CLIP, scaled_cosine_attn=True), "Scaled cosine attention is not supported"),
        (own_open_clip_block, "Blocks of class test_wrap.OwnOpenClipBlock with .* cannot be stopped half-way"),
    ],
)
def test_a_block_that_cannot_be_finished_exactly_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        wrap(make())
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("layer", "error", "sentence"),
    [
        (5, UserError, "select_layer=5 is out of range: this tower has 4 layers"),
        (-6, UserError, "select_layer=-6 is out of range"),
        ([-2, 9], UserError, "select_layer=9 is out of range"),
        (0, UserError, "no layer with attention .* 4 layers"),
        (-5, UserError, "no layer with attention"),
        ([0, -5], UserError, "no layer with attention"),
        ([], UserError, "no layer with attention"),
        (True, UserTypeError, "must be a whole number or a list of them, not True"),
        ("-2", UserTypeError, "must be a whole number"),
        (-2.0, UserTypeError, "must be a whole number"),
        ([-2, "1"], UserTypeError, "must be a whole number"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(make_tower, layer, error, sentence):
    with pytest.raises(error, match=sentence):
        wrap(make_tower(), select_layer=layer)


@pytest.mark.parametrize(
    ("shape", "interpolate", "sentence"),
    [
        ((3, 64, 64), False, r"shape \(B, 3, H, W\) are needed, but these are \(3, 64, 64\)"),
        ((1, 5, 3, 64, 64), False, r"shape \(B, 3, H, W\) are needed"),
        ((1, 1, 64, 64), False, r"shape \(B, 3, H, W\) are needed"),
        ((1, 3, 32, 64), False, "reads pictures of 64 x 64 pixels, but these are 32 x 64"),
        ((1, 3, 4, 64), True, "smaller than one patch of 8 x 8"),
    ],
)
def test_pixels_of_another_shape_are_refused(make_tower, shape, interpolate, sentence):
    with pytest.raises(UserError, match=sentence):
        wrap(make_tower())(torch.zeros(shape), interpolate_pos_encoding=interpolate)


@pytest.mark.parametrize(
    ("index", "error", "sentence"),
    [
        (torch.zeros(2, 4), UserTypeError, "patch positions, but this one is torch.float32"),
        (torch.zeros(2, 16, dtype=torch.bool), UserTypeError, "this one is torch.bool"),
        (torch.zeros(4, dtype=torch.long), UserError, r"shape \(2, K\) is needed for 2 images, not \(4,\)"),
        (torch.zeros(1, 4, dtype=torch.long), UserError, r"shape \(2, K\)"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index, error, sentence):
    patches = ScoredPatches(torch.zeros(2, 3, 16), (4, 4), torch.zeros(2, dtype=torch.long), lambda index: torch.zeros(2, 1, 1))
    with pytest.raises(error, match=sentence):
        patches.features(index)


@pytest.mark.parametrize("position", [-1, 64])
def test_a_position_outside_the_grid_never_reaches_cls(make_tower, pixels, position):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        wrap(make_tower())(pixels).features(torch.full((3, 1), position))


def test_cls_row_is_a_softmax_in_float32():
    query, key = torch.randn(2, 3, 1, 8).half(), torch.randn(2, 3, 17, 8).half()
    expected = (query.double() @ key.double().transpose(-1, -2) * 0.5).softmax(-1).squeeze(2)
    row = cls_row(query, key, 0.5)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_image_key_is_exact_in_any_order_and_batch(dtype):
    pixels = (torch.randn(4, 3, 32, 32) * 50).abs().to(dtype)
    key = image_key(pixels)
    assert key.dtype == torch.int64
    assert len(set(key.tolist())) == 4
    assert torch.equal(image_key(pixels.flip(0)).flip(0), key)
    assert torch.equal(image_key(pixels[2:3])[0], key[2])
    assert torch.equal(image_key(pixels.transpose(2, 3)), key)
