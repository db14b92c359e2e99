"""Tiny random models of the families without a tower or connector of LLaVA-1.5's, and prompts of ids with pictures in them.

A picture is what the model's own processor would make of one: a kind, tensors whose first dimension counts pictures, and how
many placeholders it takes, which the stock model says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.support import tiny

IMAGE_ID, VIDEO_ID, START_ID, STOP_ID, WORDS = 3, 4, 5, 6, 263
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TEXT: dict[str, Any] = SMALL | {
    "num_hidden_layers": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Picture:
    """One picture or clip."""

    kind: str
    inputs: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A kind of model, and what it is shown.

    `picture(seed)` makes one; those of different seeds are of different shapes where the model takes several. `settings` are
    those of `fastervlm.prune`.
    """

    make: Callable[[], Any]
    picture: Callable[[int], Picture]
    settings: dict[str, Any] = field(default_factory=dict)
    around: tuple[int, int] | None = None
    counted: bool = False
    typed: bool = False
    apart: bool = False


def random(model, seed=0):
    torch.manual_seed(seed)
    model = model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def of(config: Any, **settings: Any) -> Any:
    return config(**settings)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip_tower(**changes):
    return of(CLIPVisionConfig, **(SMALL | {"num_hidden_layers": 4, "image_size": 32, "patch_size": 8} | changes))


def vipllava():
    parts: dict[str, Any] = {"vision_config": clip_tower(), "text_config": LlamaConfig(**TEXT)}
    config = of(VipLlavaConfig, **parts, image_token_id=IMAGE_ID, vision_feature_layer=[-2, -3, 1])
    return VipLlavaForConditionalGeneration(config)


def flat_picture(seed):
    return Picture("image", {"pixel_values": noise(seed, 1, 3, 32, 32)})


def siglip():
    return of(SiglipVisionConfig, **SMALL, num_hidden_layers=3, image_size=32, patch_size=8, vision_use_head=True)


def llava_with_siglip(model, config, **more):
    parts = {"vision_config": siglip(), "text_config": LlamaConfig(**TEXT), "vision_feature_select_strategy": "full"}
    return model(of(config, **parts, image_token_id=IMAGE_ID, **more))


PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
SIZES = [(40, 60), (64, 64), (90, 30), (30, 31)]  # height and width of pictures
CROPS = [2, 4, 3, 4]  # that they are cut into


def next_video(mode):
    config = of(
        LlavaNextVideoConfig,
        vision_config=clip_tower(),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_grid_pinpoints=PINPOINTS,
        spatial_pool_mode=mode,
        spatial_pool_out_channels=32,
    )
    return LlavaNextVideoForConditionalGeneration(config)


def cropped(seed):
    pixels = torch.zeros(1, 5, 3, 32, 32)
    count = 1 + CROPS[seed % 4]
    pixels[:, :count] = noise(seed, 1, count, 3, 32, 32)
    return Picture("image", {"pixel_values": pixels, "image_sizes": torch.tensor([SIZES[seed % 4]])})


def clip(seed, frames=3):
    return Picture("video", {"pixel_values_videos": noise(seed, 1, frames, 3, 32, 32)})


def onevision(ratio="anyres_max_9"):
    """Frames of 5 x 5 patches, which are pooled to 3 x 3."""
    config = of(
        LlavaOnevisionConfig,
        vision_config=of(SiglipVisionConfig, **SMALL, num_hidden_layers=3, image_size=32, patch_size=6, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, num_key_value_heads=1),
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ratio,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def internvl(**changes):
    vision = of(
        InternVLVisionConfig,
        **SMALL,
        num_hidden_layers=3,
        image_size=[32, 32],
        patch_size=[8, 8],
        layer_scale_init_value=0.5,
        **changes,
    )
    text = Qwen2Config(**TEXT, num_key_value_heads=1)
    return InternVLForConditionalGeneration(
        of(InternVLConfig, vision_config=vision, text_config=text, image_token_id=IMAGE_ID, image_seq_length=4)
    )


def tiles(seed):
    """One to three tiles."""
    return Picture("image", {"pixel_values": noise(seed, 1 + seed % 3, 3, 32, 32)})


def flat_in_crops(seed):
    """A picture so flat that little of its two crops is left behind un-padding."""
    pixels = torch.zeros(1, 5, 3, 32, 32)
    pixels[:, :4] = noise(seed, 1, 4, 3, 32, 32)
    return Picture("image", {"pixel_values": pixels, "image_sizes": torch.tensor([[9, 96]])})


PATCH, SEQUENCES = 7, {"image": "image_grid_thw", "video": "video_grid_thw"}
GRIDS = [(1, 4, 6), (1, 4, 4), (1, 2, 8), (1, 4, 6)]


def qwen(model, config, **vision):
    """Text and tower of a Qwen-VL, pictures in patches of 7 x 7 pixels, joined by 2 x 2."""
    mrope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    shared = {"depth": 4, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return model(
        of(
            config,
            vision_config=shared | vision,
            text_config=TEXT | {"num_key_value_heads": 1, "rope_parameters": mrope},
            image_token_id=IMAGE_ID,
            video_token_id=VIDEO_ID,
            vision_start_token_id=START_ID,
            vision_end_token_id=STOP_ID,
        )
    )


def qwen2():
    return qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, embed_dim=32, hidden_size=32, mlp_ratio=2)


def qwen2_5(full):
    more = {"window_size": 28, "fullatt_block_indexes": full, "tokens_per_second": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    return qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, **sizes, **more)


def qwen3():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
    return qwen(Qwen3VLForConditionalGeneration, Qwen3VLConfig, **sizes, deepstack_visual_indexes=[0, 2])


def packed_picture(seed):
    return packed(seed, "pixel_values", "image", GRIDS[seed % 4])


def packed_clip(seed):
    return packed(seed, "pixel_values_videos", "video", (2 + seed % 2, 4, 4))


def packed(seed, name, kind, grid):
    pixels = noise(seed, grid[0] * grid[1] * grid[2], 3 * 2 * PATCH * PATCH)
    return Picture(kind, {name: pixels, SEQUENCES[kind]: torch.tensor([grid])})


def either(first, second):
    return lambda seed: second(seed) if seed % 2 else first(seed)


def of_video_llava(seed):
    return Picture("image", {"pixel_values_images": noise(seed, 1, 3, 32, 32)})


def video_llava():
    return tiny.video_llava(video_token_index=VIDEO_ID)


CASES: dict[str, Case] = {
    "llava": Case(tiny.llava, flat_picture),
    "llava-next": Case(tiny.llava_next, cropped),
    "video-llava pictures": Case(video_llava, of_video_llava),
    "video-llava clips": Case(video_llava, clip, {"keep_cls": True}),
    "video-llava both": Case(video_llava, either(of_video_llava, clip), {"keep_cls": True}),
}
CASES |= {
    "llava with siglip": Case(
        lambda: llava_with_siglip(LlavaForConditionalGeneration, LlavaConfig, vision_feature_layer=-1), flat_picture
    ),
    "llava-next with siglip, by its probe": Case(
        lambda: llava_with_siglip(LlavaNextForConditionalGeneration, LlavaNextConfig, image_grid_pinpoints=PINPOINTS),
        lambda seed: cropped(seed),
        {"method": "cls", "score": "pool"},
    ),
    "vipllava": Case(vipllava, flat_picture),
    "next-video pictures": Case(lambda: next_video("average"), cropped),
    "next-video clips": Case(lambda: next_video("average"), clip),
    "next-video clips, max": Case(lambda: next_video("max"), clip),
    "next-video clips, conv": Case(lambda: next_video("conv"), clip),
    "next-video both": Case(lambda: next_video("average"), either(cropped, clip)),
}
CASES |= {
    "internvl": Case(internvl, tiles, around=(START_ID, STOP_ID)),
    "internvl, rms norm": Case(
        lambda: internvl(norm_type="rms_norm", use_qk_norm=True, use_absolute_position_embeddings=True),
        tiles,
        {"budget": "image"},
        around=(START_ID, STOP_ID),
    ),
    "internvl, cls": Case(internvl, tiles, {"method": "cls"}, around=(START_ID, STOP_ID)),
}
CASES |= {
    "onevision pictures": Case(onevision, cropped),
    "onevision pictures beside others": Case(onevision, cropped, counted=True),
    "onevision pictures resized": Case(lambda: onevision("anyres_max_1"), either(cropped, flat_in_crops)),
    "onevision clips": Case(onevision, clip),
    "onevision both": Case(onevision, either(cropped, clip)),
    "onevision by norm": Case(onevision, either(cropped, clip), {"method": "cls", "score": "norm"}),
    "onevision by what is received": Case(onevision, either(cropped, clip), {"method": "cls", "score": "received"}),
}
QWEN: dict[str, Any] = {"around": (START_ID, STOP_ID), "typed": True}
CASES |= {
    "qwen2 pictures": Case(qwen2, packed_picture, **QWEN),
    "qwen2 both": Case(qwen2, either(packed_picture, packed_clip), **QWEN),
    "qwen2.5 pictures": Case(lambda: qwen2_5([1, 3]), packed_picture, **QWEN),
    "qwen2.5 clips": Case(lambda: qwen2_5([1, 3]), packed_clip, {"budget": "clip", "score": "norm"}, **QWEN),
    "qwen2.5 whose last block sees windows": Case(
        lambda: qwen2_5([1]), either(packed_clip, packed_picture), {"method": "cls", "score": "received"}, **QWEN
    ),
}
CASES |= {
    "qwen3 pictures": Case(qwen3, packed_picture, **QWEN),
    "qwen3 both": Case(qwen3, either(packed_picture, packed_clip), **QWEN, apart=True),
}

# Batches of prompts: of each row, the seeds of its pictures; texts stand around them.
ROWS: dict[str, list[list[int]]] = {
    "one": [[0]],
    "two pictures": [[0, 1]],
    "ragged": [[1], [0, 2], []],
    "equal rows": [[0], [0]],
}


def features(model, picture, company=False):
    """(T, D): what the stock model shows at the placeholders of a picture; with `company`, of one that is shown twice."""
    names = {"image": "get_image_features", "video": "get_video_features"}
    inputs = picture.inputs
    if company:
        inputs = {name: x.repeat(2, *[1] * (x.dim() - 1)) for name, x in inputs.items()} | {"batch_num_images": [2]}
    told = getattr(model.model, names[picture.kind])(**inputs).pooler_output
    told = told[:1] if company else told
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in told])


@torch.no_grad()
def prompt(case, model, rows, side="left", first=0):
    """The inputs of a batch, as a processor makes them: words, then for each picture its placeholders and words behind.

    Rows differ in their words by their number, the first of which is `first`.
    """
    ids, shown = [], []
    for number, seeds in enumerate(rows, first):
        row = [1, 10 + number, 11]
        for seed in seeds:
            picture = case.picture(seed)
            token = {"image": IMAGE_ID, "video": VIDEO_ID}[picture.kind]
            before, behind = ([START_ID], [STOP_ID]) if case.around else ([], [])
            count = len(features(model, picture, case.counted and len(seeds) > 1))
            parts = int(picture.inputs["video_grid_thw"][0, 0]) if case.apart and picture.kind == "video" else 1
            for _ in range(parts):
                row += [*before, *[token] * (count // parts), *behind, 20 + seed, 21]
            shown.append(picture)
        ids.append([*row, 12, 13 + number])
    longest = max(map(len, ids))
    pads = [[0] * (longest - len(row)) for row in ids]
    batch = [pad + row if side == "left" else row + pad for pad, row in zip(pads, ids, strict=True)]
    masks = [[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, ids, strict=True)]
    if side == "right":
        masks = [mask[::-1] for mask in masks]
    names = dict.fromkeys(name for picture in shown for name in picture.inputs)
    together = {name: torch.cat([p.inputs[name] for p in shown if name in p.inputs]) for name in names}
    if case.typed:
        ids = torch.tensor(batch)
        together["mm_token_type_ids"] = (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()
    if case.counted:
        together["batch_num_images"] = torch.tensor([len(seeds) for seeds in rows])
    return {"input_ids": torch.tensor(batch), "attention_mask": torch.tensor(masks)} | together
