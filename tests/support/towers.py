"""Tiny random towers of every supported kind, and the slow plain way to their scores and features: the whole forward, with
every attention map kept."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import pytest
import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from encoders.languagebind_tower import LanguageBindVisionModel

SIZE, PATCH, WIDTH, DEPTH = 64, 16, 32, 3
HF: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
}
TIMM: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": 4,
    "num_classes": 0,
    "mlp_ratio": 2,
}
OPEN_CLIP: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "width": WIDTH,
    "layers": DEPTH,
    "heads": 4,
    "mlp_ratio": 2.0,
    "output_dim": 16,
}


def hf(kind, config, **changes):
    return kind._from_config(config(**(HF | changes)), attn_implementation="sdpa")


def headless_siglip():
    """As inside a LLaVA-OneVision, whose checkpoints hold no pooling head."""
    return hf(SiglipVisionModel, SiglipVisionConfig, vision_use_head=False)


def internvl(**changes):
    sizes = HF | {"image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH], "layer_scale_init_value": 0.5}
    return InternVLVisionModel._from_config(InternVLVisionConfig(**(sizes | changes)), attn_implementation="sdpa")


def languagebind(**changes):
    """LanguageBind's tower, by the config of transformers with LanguageBind's own settings added."""
    return LanguageBindVisionModel(CLIPVisionConfig(**(HF | {"hidden_act": "gelu", "num_frames": 8} | changes)))


def hf_clip():
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    return CLIPModel(CLIPConfig(vision_config=CLIPVisionConfig(**HF).to_dict(), text_config=text.to_dict()))


def open_clip_model():
    vision = CLIPVisionCfg(layers=DEPTH, width=WIDTH, head_width=8, patch_size=PATCH, image_size=SIZE)
    return CLIP(16, vision, CLIPTextCfg(context_length=8, vocab_size=99, width=16, heads=2, layers=1), quick_gelu=True)


def timm_model():
    """open_clip's shell around a timm trunk, which its registry fills with timm's smallest EVA-CLIP made smaller still."""
    shell = TimmModel("vit_tiny_patch16_224", embed_dim=16, pool="token")
    shell.trunk = Eva(**TIMM, use_rot_pos_emb=True, scale_attn_inner=True, swiglu_mlp=True, scale_mlp=True)
    return shell


def timm_gated():
    """timm has the gate in its attention, but no argument of its towers for it yet."""
    tower: Any = VisionTransformer(**TIMM)
    for block in tower.blocks:
        block.attn.gate = nn.Linear(WIDTH, WIDTH)
    return tower


def eva_bias_apart():
    tower: Any = Eva(**TIMM)
    for block in tower.blocks:
        block.attn.qkv_bias_separate = True
    return tower


@dataclass(frozen=True)
class Case:
    """A kind of tower: how it is made, and what is known of it without asking it. `clip` is how many frames its clips have,
    0 if it takes pictures."""

    make: Callable[[], Any]
    trunk: Callable[[Any], Any] = lambda model: model
    blocks: str = "blocks"
    prefix: int = 1
    score: Literal["cls", "pool", "received", "norm"] = "cls"
    size: tuple[int, int] = (SIZE, SIZE)
    grid: tuple[int, int] = (4, 4)
    clip: int = 0


TOWERS: dict[str, Case] = {
    "hf clip": Case(partial(hf, CLIPVisionModel, CLIPVisionConfig), blocks="encoder.layers"),
    "hf clip with projection": Case(
        partial(hf, CLIPVisionModelWithProjection, CLIPVisionConfig), lambda m: m.vision_model, "encoder.layers"
    ),
    "hf whole clip": Case(hf_clip, lambda m: m.vision_model, "encoder.layers"),
    "hf siglip": Case(partial(hf, SiglipVisionModel, SiglipVisionConfig), blocks="encoder.layers", prefix=0, score="pool"),
    "hf siglip received": Case(headless_siglip, blocks="encoder.layers", prefix=0, score="received"),
    "hf siglip norm": Case(headless_siglip, blocks="encoder.layers", prefix=0, score="norm"),
    "hf clip received": Case(partial(hf, CLIPVisionModel, CLIPVisionConfig), lambda m: m, "encoder.layers", score="received"),
    "hf clip norm": Case(partial(hf, CLIPVisionModel, CLIPVisionConfig), blocks="encoder.layers", score="norm"),
    "internvl": Case(internvl, blocks="encoder.layer"),
    "internvl rms norm": Case(
        partial(internvl, norm_type="rms_norm", use_qk_norm=True, attention_bias=True), blocks="encoder.layer"
    ),
    "internvl pooled": Case(
        partial(internvl, use_mean_pooling=False, use_absolute_position_embeddings=True), blocks="encoder.layer"
    ),
    "internvl received": Case(partial(internvl, use_qk_norm=True), blocks="encoder.layer", score="received"),
    "languagebind received": Case(
        partial(languagebind, add_time_attn=True, num_frames=3), blocks="encoder.layers", clip=3, score="received"
    ),
    "languagebind of pictures": Case(partial(languagebind, add_time_attn=False), blocks="encoder.layers"),
    "languagebind of a clip": Case(partial(languagebind, add_time_attn=True, num_frames=3), blocks="encoder.layers", clip=3),
    "languagebind of clips of one frame": Case(partial(languagebind, add_time_attn=True), blocks="encoder.layers", clip=1),
    "open_clip": Case(partial(OpenClipViT, **OPEN_CLIP, act_layer=QuickGELU), blocks="transformer.resblocks"),
    "open_clip wide": Case(
        partial(OpenClipViT, **(OPEN_CLIP | {"image_size": (48, 96)}), ls_init_value=0.5),
        blocks="transformer.resblocks",
        size=(48, 96),
        grid=(3, 6),
    ),
    "open_clip own attention": Case(
        partial(OpenClipViT, **OPEN_CLIP, block_type="custom", no_ln_pre=True), blocks="transformer.resblocks"
    ),
    "open_clip own attention, all options": Case(
        partial(
            OpenClipViT,
            **OPEN_CLIP,
            qk_norm=True,
            scale_heads=True,
            scale_attn_inner=True,
            scale_attn=True,
            scale_fc=True,
            ls_init_value=0.5,
        ),
        blocks="transformer.resblocks",
    ),
    "open_clip coca": Case(partial(OpenClipViT, **OPEN_CLIP, attentional_pool=True), blocks="transformer.resblocks"),
    "open_clip whole model": Case(open_clip_model, lambda m: m.visual, "transformer.resblocks"),
    "open_clip around timm": Case(timm_model, lambda m: m.trunk),
    "timm clip": Case(partial(VisionTransformer, **TIMM, pre_norm=True, act_layer="quick_gelu")),
    "timm registers": Case(partial(VisionTransformer, **TIMM, reg_tokens=4, init_values=0.5), prefix=5),
    "timm dinov2": Case(
        partial(
            timm.create_model, "vit_small_patch14_reg4_dinov2", **(TIMM | {"patch_size": 16}), mlp_layer=timm.layers.SwiGLU
        ),
        prefix=5,
    ),
    "timm deit": Case(partial(VisionTransformerDistilled, **TIMM), prefix=2),
    "timm wide": Case(partial(VisionTransformer, **(TIMM | {"img_size": (48, 96)})), size=(48, 96), grid=(3, 6)),
    "timm stretched": Case(partial(VisionTransformer, **TIMM, dynamic_img_size=True), size=(96, 48), grid=(6, 3)),
    "timm padded": Case(
        partial(VisionTransformer, **TIMM, dynamic_img_size=True, dynamic_img_pad=True), size=(50, 95), grid=(4, 6)
    ),
    "timm all options": Case(
        partial(VisionTransformer, **TIMM, qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False)
    ),
    "timm gated": Case(timm_gated),
    "timm post-norm": Case(partial(VisionTransformer, **TIMM, block_fn=ResPostBlock)),
    "timm siglip": Case(partial(VisionTransformer, **TIMM, class_token=False, global_pool="map"), prefix=0, score="pool"),
    "timm siglip around registers": Case(
        partial(VisionTransformer, **TIMM, reg_tokens=2, global_pool="map"), prefix=3, score="pool"
    ),
    "eva01": Case(partial(Eva, **TIMM)),
    "eva01 bias apart": Case(eva_bias_apart),
    "eva01 without bias": Case(partial(Eva, **TIMM, qkv_bias=False, init_values=0.5)),
    "eva02": Case(
        partial(
            Eva,
            **TIMM,
            qkv_fused=False,
            use_rot_pos_emb=True,
            ref_feat_shape=(2, 2),
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
        )
    ),
    "eva02 post-norm": Case(partial(Eva, **TIMM, use_post_norm=True)),
    "eva rope in halves": Case(
        partial(
            Eva,
            **TIMM,
            attn_type="rope",
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_rotate_half=True,
            num_reg_tokens=4,
            qk_norm=True,
            init_values=0.5,
            attn_only_layer_scale=True,
            use_abs_pos_emb=False,
            dynamic_img_size=True,
        ),
        prefix=5,
        size=(48, 96),
        grid=(3, 6),
    ),
    "eva rope received": Case(
        partial(Eva, **TIMM, use_rot_pos_emb=True, rope_type="mixed", num_reg_tokens=2), prefix=3, score="received"
    ),
    "eva rope by layer and head": Case(partial(Eva, **TIMM, use_rot_pos_emb=True, rope_type="mixed")),
    "eva shared keys": Case(partial(Eva, **TIMM, attn_type="rope", qkv_fused=False, num_kv_heads=2, use_rot_pos_emb=True)),
    "pe by cls": Case(partial(Eva, **TIMM, attn_type="rope", use_rot_pos_emb=True, global_pool="map")),
    "pe by probe": Case(partial(Eva, **TIMM, attn_type="rope", use_rot_pos_emb=True, global_pool="map"), score="pool"),
}


def make(case):
    """A tower of a case with the same random weights at every call; attention is far from uniform and no bias is zero."""
    return copy.deepcopy(_made(case))


@cache
def _made(case):
    torch.manual_seed(0)
    model = case.make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sharp = any(part in name for part in ("q_proj", "k_proj", "qkv", "in_proj_weight", "kv.weight", "latent", "probe"))
            parameter += (0.6 * parameter.shape[-1] ** -0.5 if sharp else 0.05) * torch.randn_like(parameter)
    return model


def pixels(case, batch=3):
    """So many pictures, or as many clips as they make."""
    pictures = torch.randn(batch, 3, *case.size, generator=torch.Generator().manual_seed(1))
    return pictures.unflatten(0, (-1, case.clip)) if case.clip else pictures


class Stock(NamedTuple):
    """What a whole forward computed: hidden states by their index, prefix dropped, the attention each score is made of, and the
    first token of each hidden state."""

    states: list[torch.Tensor]
    attention: list[torch.Tensor]
    first: list[torch.Tensor]


def stock(case, model, pixel_values):
    """The whole forward of the stock tower. `attention[d]` (B, M, N) is what block `d` (from 1) gives as scores, or, where the
    case is scored by its pooling head, what that gives, whatever the block."""
    trunk, maps, states = case.trunk(model), [], []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs):
        full = (query.float() @ key.float().mT * (scale or query.shape[-1] ** -0.5)).softmax(-1)
        if not case.clip or full.shape[-1] != case.clip:  # the attention over time scores nothing
            maps.append(full)
        return full.to(value.dtype) @ value

    blocks = trunk.get_submodule(case.blocks)
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))]
    hooks += [block.register_forward_hook(lambda module, args, out: states.append(out)) for block in blocks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        out = trunk(pixel_values)
    for hook in hooks:
        hook.remove()
    if case.score == "pool":
        if len(maps) == DEPTH:  # transformers' head averages its map away, but can be asked for it
            tokens = out.last_hidden_state
            probe = trunk.head.probe.repeat(len(tokens), 1, 1)
            maps.append(trunk.head.attention(probe, tokens, tokens, average_attn_weights=False)[1])
        rows = [maps[-1][:, :, 0]] * (DEPTH + 1)
    elif case.score == "norm":
        lengths = [x[:, case.prefix :].square().sum(-1).sqrt() for x in states]
        rows = [(length / length.sum(1, keepdim=True))[:, None] for length in lengths]
    else:
        seen = [full.mean(2) if case.score == "received" else full[:, :, 0] for full in maps[:DEPTH]]
        rows = [seen[0], *seen]
    patches = case.grid[0] * case.grid[1]
    attention = [row[..., -patches:].detach() for row in rows]
    return Stock([x[:, case.prefix :].detach() for x in states], attention, [x[:, 0].detach() for x in states])


def rows(features, index):
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def forbid(module: nn.Module):
    """Let a module fail when it runs."""

    def forward(*args, **kwargs):
        raise RuntimeError("this module must not run")

    module.forward = forward
