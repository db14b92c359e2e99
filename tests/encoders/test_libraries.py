"""The same weights in transformers, open_clip and timm: the same scores, the same kept patches, the same features.

timm's own converter reads the weights of OpenAI's CLIP and Meta's DINOv2; open_clip's tower has OpenAI's names already. The
way from transformers' names to those, for which no library has a converter, is `playground.weights` and the table below.
"""

import pytest
import torch
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from encoders import wrap
from playground.weights import renamed, to_open_clip

# (width, heads, layers, image, patch)
SHAPES = [(32, 4, 2, 64, 16), (48, 3, 3, 56, 14), (64, 8, 5, 96, 8), (128, 2, 4, 64, 32)]
TIMM_NAMES = [
    ("head.probe", "attn_pool.latent"),
    ("head.attention.out_proj", "attn_pool.proj"),
    ("head.layernorm", "attn_pool.norm"),
    ("head.mlp", "attn_pool.mlp"),
    ("layer_norm", "norm"),
    ("post_layernorm", "norm"),
    ("layernorm", "norm"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("embeddings.", ""),
    ("encoder.layers", "blocks"),
    ("encoder.layer", "blocks"),
    ("self_attn.", "attn."),
    ("attention.", "attn."),
    ("attn.out_proj", "attn.proj"),
    ("attn.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
]


def scrambled(tower):
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            parameter += (0.1 if "q_proj" in name or "k_proj" in name or "in_proj" in name else 0.05) * torch.randn_like(
                parameter
            )
    return tower.eval()


def pictures(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def the_same(encoders, pixel_values, keep):
    first, *others = [encoder(pixel_values) for encoder in encoders]
    index = first.scores.topk(keep).indices.sort().values
    for other in others:
        torch.testing.assert_close(other.cls_attention, first.cls_attention, rtol=0, atol=1e-6)
        assert torch.equal(other.scores.topk(keep).indices.sort().values, index)
        torch.testing.assert_close(other.features(index), first.features(index), rtol=1e-5, atol=1e-5)
        assert other.grid == first.grid


@pytest.mark.parametrize("layer", [-2, -1, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clip_in_three_libraries(shape, layer):
    width, heads, layers, image, patch = shape
    torch.manual_seed(sum(shape))
    size = {"image_size": image, "patch_size": patch}
    config = CLIPVisionConfig(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=2 * width, **size
    )
    ours = scrambled(CLIPVisionModel(config))
    clip = OpenClipViT(**size, width=width, layers=layers, heads=heads, mlp_ratio=2, output_dim=8, act_layer=QuickGELU).eval()
    state = to_open_clip(ours.state_dict())
    clip.load_state_dict({name: x for name, x in state.items() if "position_ids" not in name} | {"proj": clip.proj})
    sizes = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads}
    timm = VisionTransformer(**sizes, mlp_ratio=2, pre_norm=True, act_layer="quick_gelu", num_classes=0).eval()
    for norm in [m for m in timm.modules() if isinstance(m, torch.nn.LayerNorm)]:
        norm.eps = 1e-5
    state = {f"visual.{name}": x for name, x in clip.state_dict().items()}
    timm.load_state_dict({k: v for k, v in checkpoint_filter_fn(state, timm).items() if not k.startswith("head.")})
    encoders = [wrap(tower, select_layer=layer) for tower in (ours, clip, timm)]
    the_same(encoders, pictures(image), max(1, (image // patch) ** 2 // 4))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_siglip_by_its_probe_in_two_libraries(shape):
    width, heads, layers, image, patch = shape
    torch.manual_seed(sum(shape))
    size = {"image_size": image, "patch_size": patch, "hidden_act": "gelu"}
    config = SiglipVisionConfig(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=2 * width, **size
    )
    ours = scrambled(SiglipVisionModel(config))
    sizes = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads}
    timm = VisionTransformer(**sizes, mlp_ratio=2, class_token=False, global_pool="map", num_classes=0).eval()
    state = renamed(ours.state_dict(), TIMM_NAMES, "qkv.")
    state["pos_embed"] = state["pos_embed"][None]
    for kind in ("weight", "bias"):
        query, key, value = state.pop(f"head.attn.in_proj_{kind}").chunk(3)
        state |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": torch.cat([key, value])}
    timm.load_state_dict({name: x for name, x in state.items() if "position_ids" not in name})
    pixel_values = pictures(image)
    torch.testing.assert_close(timm(pixel_values), ours(pixel_values).pooler_output, rtol=1e-4, atol=1e-5)
    encoders = [wrap(tower, score="pool") for tower in (ours, timm)]
    the_same(encoders, pixel_values, max(1, (image // patch) ** 2 // 4))


@pytest.mark.parametrize("registers", [1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_registers_are_as_in_transformers_dinov2(shape, registers):
    """Against the stock tower of transformers, asked for its attention maps."""
    width, heads, layers, image, patch = shape
    torch.manual_seed(sum(shape))
    config = Dinov2WithRegistersConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        mlp_ratio=2,
        image_size=image,
        patch_size=patch,
        num_register_tokens=registers,
    )
    stock = scrambled(Dinov2WithRegistersModel._from_config(config, attn_implementation="eager"))
    sizes = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads}
    timm = VisionTransformer(
        **sizes, mlp_ratio=2, reg_tokens=registers, no_embed_class=True, init_values=1, num_classes=0
    ).eval()
    timm.load_state_dict(checkpoint_filter_fn(renamed(stock.state_dict(), TIMM_NAMES, "qkv."), timm))
    pixel_values = pictures(image)
    out = stock(pixel_values, output_attentions=True, output_hidden_states=True)
    patches = wrap(timm)(pixel_values)
    torch.testing.assert_close(patches.cls_attention, out.attentions[-2][:, :, 0, 1 + registers :], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.features(), out.hidden_states[-2][:, 1 + registers :], rtol=1e-5, atol=1e-5)
