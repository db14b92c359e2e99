"""What surrounds the adapters of open_clip and timm: sizes of pictures, offloading, other layers in place, training."""

from functools import partial

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from encoders import UserError, wrap
from tests.support import towers
from tests.support.checks import one_sentence
from tests.support.towers import DEPTH, OPEN_CLIP, TIMM, TOWERS, Case

SIZES = [
    (OpenClipViT, OPEN_CLIP, (48, 64), "reads pictures of 64 x 64 .* 48 x 64; .* force_image_size=(48, 64)"),
    (VisionTransformer, TIMM, (48, 64), "64 x 64 .* 48 x 64; .* img_size=(48, 64) or dynamic_img_size=True"),
    (Eva, TIMM | {"use_rot_pos_emb": True}, (96, 64), "64 x 64 .* 96 x 64; .* img_size=(96, 64) or dynamic_img_size=True"),
    (VisionTransformer, TIMM | {"dynamic_img_size": True}, (40, 64), "40 x 64 .* whole patches of 16 x 16; .* dynamic_img_pad"),
    (VisionTransformer, TIMM | {"dynamic_img_size": True}, (8, 64), "8 x 64 .* whole patches of 16 x 16"),
]


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize(("kind", "settings", "size", "sentence"), SIZES)
def test_pictures_of_a_size_it_cannot_read_are_refused(kind, settings, size, sentence, interpolate):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(").replace(")", r"\)")) as caught:
        wrap(kind(**settings))(torch.zeros(1, 3, *size), interpolate_pos_encoding=interpolate)
    one_sentence(caught.value)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (64,)])
@pytest.mark.parametrize(("kind", "settings"), [(OpenClipViT, OPEN_CLIP), (VisionTransformer, TIMM), (Eva, TIMM)])
def test_pixels_of_another_shape_are_refused(kind, settings, shape):
    with pytest.raises(UserError, match=r"pixel_values of shape \(B, 3, H, W\) are needed"):
        wrap(kind(**settings))(torch.zeros(shape))


def test_a_tower_may_change_its_size_between_calls():
    tower = towers.make(TOWERS["timm clip"])
    encoder = wrap(tower)
    assert encoder(torch.zeros(1, 3, 64, 64)).grid == (4, 4)
    tower.set_input_size((48, 96))
    case = Case(make=VisionTransformer, size=(48, 96), grid=(3, 6))
    pixel_values = towers.pixels(case)
    patches = encoder(pixel_values)
    expected = towers.stock(case, tower, pixel_values)
    assert patches.grid == (3, 6)
    torch.testing.assert_close(patches.cls_attention, expected.attention[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.features(), expected.states[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prefix", "width"),
    [
        ("vit_base_mci_224", 1, 768),  # MobileCLIP-B: convolutions before the patches
        ("eva_giant_patch14_clip_224", 1, 32),
        ("eva02_base_patch16_clip_224", 1, 32),
        ("eva02_enormous_patch14_clip_224", 1, 32),
        ("vit_pe_core_tiny_patch16_384", 1, 32),
        ("vit_small_patch16_dinov3", 5, 32),
        ("vit_giant_patch14_reg4_dinov2", 5, 32),
        ("deit3_small_patch16_224", 1, 32),
    ],
)
def test_real_names_made_small(name, prefix, width):
    size = 56 if "patch14" in name else 64
    make = partial(timm.create_model, name, img_size=size, depth=DEPTH, embed_dim=width, num_heads=4, num_classes=0)
    case = Case(make, prefix=prefix, size=(size, size))
    model, pixel_values = towers.make(case), towers.pixels(case)
    patches, expected = wrap(model)(pixel_values), towers.stock(case, model, pixel_values)
    index = patches.scores.topk(5).indices
    assert patches.grid == (4, 4)
    torch.testing.assert_close(patches.cls_attention, expected.attention[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.features(index), towers.rows(expected.states[2], index), rtol=1e-5, atol=1e-5)


class Adapted(nn.Linear):
    """Stands for what adapters and quantisers put in a layer's place: its weight is not all it computes with."""

    def forward(self, input):
        return super().forward(input) + 0.5 * input.abs().mean(-1, keepdim=True)


@pytest.mark.parametrize(
    "name", ["timm clip", "timm registers", "eva01", "eva01 bias apart", "eva01 without bias", "eva shared keys"]
)
def test_layers_in_place_of_plain_ones_are_used_as_the_tower_uses_them(name):
    case = TOWERS[name]
    model = towers.make(case)
    for block in model.blocks:
        for part in ("qkv", "q_proj", "k_proj", "v_proj"):
            if isinstance(getattr(block.attn, part, None), nn.Linear):
                getattr(block.attn, part).__class__ = Adapted
    patches = wrap(model)(towers.pixels(case))
    expected = towers.stock(case, model, towers.pixels(case))
    torch.testing.assert_close(patches.cls_attention, expected.attention[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.features(), expected.states[2], rtol=1e-5, atol=1e-5)


def test_offloaded_blocks_of_timm():
    accelerate = pytest.importorskip("accelerate")
    case = TOWERS["timm registers"]
    expected = wrap(towers.make(case))(towers.pixels(case))
    tower = towers.make(case)
    accelerate.cpu_offload(tower.blocks, execution_device=torch.device("cpu"))
    assert tower.blocks[1].attn.qkv.weight.is_meta
    patches = wrap(tower)(towers.pixels(case))
    torch.testing.assert_close(patches.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.features(), expected.features(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "part", "module"),
    [
        ("timm clip", lambda tower: tower, "VisionTransformer"),
        ("open_clip", lambda tower: tower, "VisionTransformer"),
        ("open_clip", lambda tower: tower.transformer.resblocks[1].attn, "MultiheadAttention"),
        ("timm siglip", lambda tower: tower.attn_pool, "AttentionPoolLatent"),
        ("hf siglip", lambda tower: tower.head.attention, "MultiheadAttention"),
    ],
)
def test_offloaded_weights_that_cannot_be_read_are_refused(name, part, module):
    accelerate = pytest.importorskip("accelerate")
    case = TOWERS[name]
    tower = towers.make(case)
    accelerate.cpu_offload(part(tower), execution_device=torch.device("cpu"))
    with pytest.raises(UserError, match=f"weights of this tower's {module} are offloaded and cannot be read; keep") as caught:
        wrap(tower, score=case.score)(towers.pixels(case))
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "tower",
    [
        OpenClipViT(**OPEN_CLIP, patch_dropout=0.5),
        VisionTransformer(**TIMM, patch_drop_rate=0.5),
        Eva(**TIMM, patch_drop_rate=0.5, use_rot_pos_emb=True),
    ],
)
def test_patches_dropped_in_training_are_refused(tower):
    encoder = wrap(tower)
    with pytest.raises(UserError, match=r"drops patches at random while it trains.*; call its eval\(\) first"):
        encoder(torch.zeros(1, 3, 64, 64))
    tower.eval()
    assert encoder(torch.zeros(1, 3, 64, 64)).features().shape == (1, 16, 32)


@pytest.mark.parametrize(
    "tower",
    [
        VisionTransformer(**TIMM, drop_path_rate=0.9),
        VisionTransformer(**TIMM, attn_drop_rate=0.5),
        VisionTransformer(**TIMM, proj_drop_rate=0.5),
        Eva(**TIMM, attn_drop_rate=0.5),
    ],
)
def test_what_the_feature_block_drops_in_training(tower):
    torch.manual_seed(0)
    patches = wrap(tower.train(), select_layer=3)(torch.randn(4, 3, 64, 64))
    index = torch.arange(8).expand(4, -1)
    assert not torch.equal(patches.features(index), patches.features(index))
    tower.eval()
    assert torch.equal(patches.features(index), patches.features(index))
