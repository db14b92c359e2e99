"""The two baselines of a lower resolution, against torch's own pooling, PIL's own shrinking and the stock model."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Qwen2VLImageProcessor

import fastervlm
from encoders import UserError, wrap
from fastervlm.families.shrunk import shrunk_picture
from fastervlm.methods.resolution import Pool
from fastervlm.selection.choice import choose
from fastervlm.selection.grids import coarser, middles
from tests.support import plain, plain_next, tiny

# Rows and columns of the patches, how many tokens are asked for, and the grid that gives at most as many.
COARSER = [
    ((24, 24), 576, (24, 24)),
    ((24, 24), 999, (24, 24)),
    ((24, 24), 288, (16, 18)),
    ((24, 24), 58, (7, 8)),
    ((24, 24), 29, (5, 5)),
    ((12, 12), 14, (3, 4)),
    ((12, 12), 7, (2, 3)),
    ((10, 40), 100, (5, 20)),
    ((40, 10), 100, (20, 5)),
    ((1, 30), 7, (1, 7)),
    ((24, 24), 1, (1, 1)),
]


@pytest.mark.parametrize(("grid", "k", "expected"), COARSER)
def test_a_coarser_grid(grid, k, expected):
    assert coarser(grid, k) == expected


def test_a_coarser_grid_is_never_finer_and_fills_most_of_what_is_asked_for():
    for grid in ((24, 24), (7, 11), (3, 30)):
        for k in range(1, grid[0] * grid[1] + 2):
            rows, columns = coarser(grid, k)
            assert 1 <= rows <= grid[0]
            assert 1 <= columns <= grid[1]
            assert k / 2 < rows * columns <= k or rows * columns == grid[0] * grid[1]
            places = middles(grid, (rows, columns)).tolist()
            assert places == sorted(set(places))
            assert len(places) == rows * columns


def test_tokens_stand_in_the_middle_of_what_they_stand_for():
    assert middles((24, 24), (2, 3)).tolist() == [24 * row + column for row in (6, 18) for column in (4, 12, 20)]
    assert middles((5, 3), (5, 1)).tolist() == [1, 4, 7, 10, 13]


def pooled(table, grid, new):
    """(B, n, D): projected patches (B, N, D) as torch pools them."""
    return F.adaptive_avg_pool2d(table.transpose(1, 2).unflatten(2, grid), new).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("k", "new"), [(1, (1, 1)), (4, (2, 2)), (6, (2, 3)), (9, (3, 3)), (12, (3, 4)), (16, (4, 4))])
@torch.no_grad()
def test_pool_is_adaptive_average_pooling_of_the_projected_grid(k, new):
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["two pictures"])
    projected = plain.Plain(model, k).projected(batch["pixel_values"])
    expected = pooled(projected, (4, 4), new)
    patches = wrap(model.model.vision_tower)(batch["pixel_values"])
    tokens, _ = choose(patches, [k, k], Pool()).project(model.model.multi_modal_projector)
    torch.testing.assert_close(tokens.view_as(expected), expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_parts_of_a_map_are_pooled_each_for_itself():
    """As the crops of LLaVA-NeXT are, where padding takes no part."""
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["two pictures"])
    projected = plain.Plain(model, 1).projected(batch["pixel_values"])
    part = projected[1].view(4, 4, -1)[1:3].flatten(0, 1)[None]
    expected = torch.cat((pooled(projected[:1], (4, 4), (2, 2))[0], pooled(part, (2, 4), (1, 3))[0]))
    patches = wrap(model.model.vision_tower)(batch["pixel_values"])
    choice = choose(patches, [4, 3], Pool(), windows=[(0, 4, 0, 4), (1, 3, 0, 4)])
    tokens, _ = choice.project(model.model.multi_modal_projector)
    assert choice.counts == [4, 3]
    torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-6)


def by_pil(pixel_values, height, width):
    """pixel_values (B, 3, H, W) shrunk by PIL, channel by channel."""
    found = [
        [np.asarray(Image.fromarray(c, "F").resize((width, height), Image.Resampling.BICUBIC)) for c in picture]
        for picture in pixel_values.numpy()
    ]
    return torch.from_numpy(np.array(found))


def with_visual(model, batch, tokens):
    """Logits of the stock model (R, L, V) for prompts of one picture each, with `tokens` (R, n, D) where it stands."""
    ids, embeds = batch["input_ids"], model.get_input_embeddings()(batch["input_ids"])
    rows = [
        torch.cat((row[: at[0]], shown, row[at[-1] + 1 :]))
        for row, shown, at in zip(embeds, tokens, [(r == plain.IMAGE_ID).nonzero()[:, 0].tolist() for r in ids], strict=True)
    ]
    return model(inputs_embeds=torch.stack(rows)).logits


METHODS: dict[str, Any] = {
    "pool": lambda model, pixels, new: pooled(plain.Plain(model, 1).projected(pixels), (4, 4), new),
    "resize": lambda model, pixels, new: stock_projected(model, by_pil(pixels, 8 * new[0], 8 * new[1])),
}


def stock_projected(model, pixel_values):
    """(B, n, D): all patches of pictures of another size, as the stock tower sees them."""
    states = model.model.vision_tower(pixel_values, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    return model.model.multi_modal_projector(states[-2][:, 1:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("k", "new"), [(2, (1, 2)), (5, (2, 2)), (7, (2, 3)), (11, (3, 3))])
@torch.no_grad()
def test_a_pruned_model_sees_what_the_stock_one_is_shown_by_hand(method, k, new):
    model, batch = tiny.llava(), plain.inputs(["<image>\nWhat is?", "A <image> or so."])
    expected = with_visual(model, batch, METHODS[method](model, batch["pixel_values"], new))
    with fastervlm.prune(model, k, method=method) as handle:
        logits = model(**batch).logits
        assert [trace.num_tokens for trace in handle.trace] == [new[0] * new[1]] * 2
        alone = model(**{name: value[1:] for name, value in batch.items()}).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone, logits[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_with_all_tokens_nothing_changes(method):
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["ragged pictures"])
    stock = model(**batch).logits
    with fastervlm.prune(model, tiny.PATCHES, method=method):
        assert torch.equal(model(**batch).logits, stock)


@torch.no_grad()
def test_the_frames_of_a_clip_are_pooled_each_behind_its_cls():
    """Against the stock model's own tokens of each frame, pooled by torch; with all of them asked for nothing changes."""
    torch.manual_seed(0)
    ids = torch.tensor([[1, 40, *[tiny.VIDEO_ID] * (2 * (tiny.PATCHES + 1)), 41]])
    clip = {"input_ids": ids, "pixel_values_videos": torch.randn(1, 2, 3, tiny.IMAGE, tiny.IMAGE)}
    model = tiny.video_llava()
    stock = embedded(model, clip)
    frames = stock[:, 2:-1].unflatten(1, (2, -1))[0]
    for keep, new in ((5, (2, 2)), (tiny.PATCHES, (4, 4))):
        shown = torch.cat((frames[:, :1], pooled(frames[:, 1:], (4, 4), new)), dim=1).flatten(0, 1)
        with fastervlm.prune(model, keep, method="pool", keep_cls=True):
            found = embedded(model, clip)
        torch.testing.assert_close(found, torch.cat((stock[:, :2], shown[None], stock[:, -1:]), dim=1), rtol=0, atol=2e-6)
    assert torch.equal(found, stock)


@torch.no_grad()
def test_crops_are_pooled_each_for_itself():
    """Against the tower's own crops, pooled by torch and laid out as a canvas; with all asked for nothing changes."""
    model, batch = tiny.llava_next(), plain_next.inputs(["USER: <image> What?"], [plain_next.SIZES["largest canvas"]])
    stock, places = embedded(model, batch), (batch["input_ids"][0] == plain.IMAGE_ID).nonzero()[:, 0]
    features = wrap(model.model.vision_tower)(batch["pixel_values"][0]).features()
    overview, *crops = pooled(model.model.multi_modal_projector(features), (4, 4), (2, 2))
    canvas = torch.stack(crops).view(2, 2, 2, 2, -1).transpose(1, 2).flatten(0, 3)  # rows of crops, of which rows of patches
    front, behind = stock[0, : places[0]], stock[0, places[-1] + 1 :]
    with fastervlm.prune(model, 4, method="pool", newline="none"):
        found = embedded(model, batch)
    torch.testing.assert_close(found[0], torch.cat((front, overview, canvas, behind)), rtol=0, atol=2e-6)
    with fastervlm.prune(model, tiny.PATCHES, method="pool"):
        assert torch.equal(embedded(model, batch), stock)


def embedded(model, batch):
    """(1, T, D): what reaches the language model."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**batch)
    hook.remove()
    return seen[0]


def refused_models():
    """What cannot be shrunk, and words of the sentence that says so."""
    from tests.support.family_cases import CASES

    return [
        (tiny.llava_next, {}, "cannot shrink what a LlavaNextForConditionalGeneration"),
        (tiny.video_llava, {}, "cannot shrink what a VideoLlavaForConditionalGeneration"),
        (CASES["qwen2.5 pictures"].make, {}, "its processor's business"),
        (tiny.llava, {"keep": fastervlm.Mass(0.5)}, "give a count or a fraction"),
    ]


@pytest.mark.parametrize("number", range(4))
def test_what_cannot_be_shrunk_is_refused(number):
    make, settings, words = refused_models()[number]
    with pytest.raises(UserError, match=words):
        fastervlm.prune(make(), **{"keep": 4, **settings}, method="resize")


def qwen_images(**changes):
    """A processor's part for pictures: patches of 8 pixels, 2 x 2 of them a token, 4 tokens at least."""
    settings = {"size": {"shortest_edge": 32**2, "longest_edge": 512**2}, "patch_size": 8, "merge_size": 2}
    return SimpleNamespace(image_processor=Qwen2VLImageProcessor(**(settings | changes)))


# Height and width in pixels, what is kept, and the rows and columns of tokens that come out.
SHRUNK = [((192, 192), 36, (6, 6)), ((192, 192), 14, (3, 4)), ((96, 320), 0.25, (3, 10)), ((100, 100), 99, (6, 6))]


@pytest.mark.parametrize(("size", "keep", "grid"), SHRUNK)
def test_a_picture_is_shrunk_before_a_processor_that_takes_any_size(size, keep, grid):
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    picture, processor = Image.fromarray(noise), qwen_images()
    small = shrunk_picture(picture, processor, fastervlm.TokenBudget(keep))
    shown = processor.image_processor(images=[small], return_tensors="pt")
    assert shown["image_grid_thw"].tolist() == [[1, 2 * grid[0], 2 * grid[1]]]
    assert small is picture or small.size == (16 * grid[1], 16 * grid[0])


def test_no_picture_is_shrunk_below_what_its_processor_enlarges_it_to():
    with pytest.raises(UserError, match="fewer than 4 tokens"):
        shrunk_picture(Image.new("RGB", (192, 192)), qwen_images(), fastervlm.TokenBudget(3))


def test_patches_that_are_there_cannot_be_resized():
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["one"])
    with pytest.raises(UserError, match="before the tower"):
        fastervlm.prune_patches(model.model.vision_tower, batch["pixel_values"], 4, method="resize")
