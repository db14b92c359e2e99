"""What the CLIP adapter keeps beyond the contract: the numbers that transformers itself returns, bit for bit."""

import pytest
import torch
from transformers import CLIPVisionModelWithProjection, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from encoders import wrap


def stock(tower, pixel_values, layer=-2, **kwargs):
    """Hidden states (B, N, C) of the stock tower without [CLS]."""
    with torch.no_grad():
        return tower(pixel_values, output_hidden_states=True, **kwargs).hidden_states[layer][:, 1:]


def rows(features, index):
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def best(patches, keep):
    return patches.scores.topk(keep).indices.sort().values


@pytest.mark.parametrize("layer", [-1, -2, -3, -4, 1, 2, 3, 4])
def test_scores_are_the_cls_row_of_the_same_block(make_tower, pixels, layer):
    with torch.no_grad():
        attentions = make_tower("eager")(pixels, output_attentions=True).attentions
    expected = attentions[layer - 1 if layer > 0 else layer][:, :, 0, 1:]
    patches = wrap(make_tower(), select_layer=layer)(pixels)
    torch.testing.assert_close(patches.cls_attention, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(patches.scores, expected.mean(1), rtol=0, atol=1e-6)
    assert patches.grid == (8, 8)
    assert patches.scores.std() > 1e-3


@pytest.mark.parametrize("layer", [-1, -2, -4, 1, 4])
@pytest.mark.parametrize("keep", [1, 5, 16, 64])
def test_kept_features_equal_the_tower_indexed_afterwards(make_tower, pixels, layer, keep):
    expected = stock(make_tower(), pixels, layer)
    patches = wrap(make_tower(), select_layer=layer)(pixels)
    index = best(patches, keep)
    assert torch.equal(patches.features(), expected)
    torch.testing.assert_close(patches.features(index), rows(expected, index), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(patches.features(), stock(make_tower("eager"), pixels, layer), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("keep", [29, 58, 128, 288, 576])
def test_kept_features_are_bitwise_equal_for_one_picture(make_tower, wide, one_thread, keep):
    """Matrix kernels round a row alike from a few rows on, and treat the last rows of a product apart: hence 577 tokens of one
    picture on one thread here, and a tolerance in other tests."""
    tower = make_tower(**wide)
    pixel_values = torch.randn(1, 3, 336, 336)
    patches = wrap(tower)(pixel_values)
    index = best(patches, keep)
    assert torch.equal(patches.features(index), rows(stock(tower, pixel_values), index))


def test_all_patches_by_index_are_bitwise_equal_in_any_batch(make_tower, pixels):
    patches = wrap(make_tower())(pixels)
    index = torch.stack([torch.randperm(64) for _ in pixels])
    assert torch.equal(patches.features(index), rows(stock(make_tower(), pixels), index))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (40, 100)])
def test_other_sizes_by_stretched_positions(make_tower, size):
    pixel_values = torch.randn(2, 3, *size)
    patches = wrap(make_tower())(pixel_values, interpolate_pos_encoding=True)
    assert patches.grid == (size[0] // 8, size[1] // 8)
    assert torch.equal(patches.features(), stock(make_tower(), pixel_values, interpolate_pos_encoding=True))


def test_the_towers_of_llava_and_of_clip_with_projection(make_tower, pixels):
    expected = wrap(make_tower())(pixels).features()
    projected = make_tower(kind=CLIPVisionModelWithProjection)
    projected.vision_model.load_state_dict(make_tower().state_dict())
    assert torch.equal(wrap(projected)(pixels).features(), expected)
    text = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
    )
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=make_tower().config, text_config=text, image_token_index=1)
    ).eval()
    tower = llava.model.vision_tower
    assert torch.equal(wrap(tower)(pixels).features(), stock(tower, pixels))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_patches_are_bitwise_the_stock_ones_whatever_attention_runs(make_tower, pixels, dtype, implementation):
    tower = make_tower(implementation).to(dtype)
    patches, expected = wrap(tower)(pixels), stock(tower, pixels)
    assert torch.equal(patches.features(), expected)
    everything = torch.arange(64).expand(3, -1)
    assert torch.equal(patches.features(everything), expected)
