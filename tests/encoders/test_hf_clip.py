"""The numbers of the CLIP adapter against the stock tower: scores, kept features, layers, sizes, dtypes, gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
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


@pytest.mark.parametrize("keep", [4, 29, 58, 128, 288, 576])
def test_kept_features_are_bitwise_equal_for_one_picture(make_tower, wide, one_thread, keep):
    """Matrix kernels round a row alike from 4 rows on, and treat the last rows of a product apart: hence 577 tokens of one
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


@pytest.mark.parametrize("layers", [[-2, -4], [1, -1, 2], [0, 3], [-2, -2], [2]])
def test_a_list_of_layers_is_concatenated_in_its_order(make_tower, pixels, layers):
    tower = make_tower()
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer][:, 1:] for layer in layers], dim=-1)
    patches = wrap(tower, select_layer=layers)(pixels)
    deepest = max(layer % 5 for layer in layers)
    assert torch.equal(patches.features(), expected)
    assert torch.equal(patches.scores, wrap(tower, select_layer=deepest)(pixels).scores)
    index = best(patches, 16)
    torch.testing.assert_close(patches.features(index), rows(expected, index), rtol=1e-5, atol=2e-6)


def test_a_batch_equals_its_pictures(make_tower, pixels):
    encoder = wrap(make_tower())
    batch = encoder(pixels)
    index = best(batch, 8)
    for i, pixel_values in enumerate(pixels):
        single = encoder(pixel_values[None])
        torch.testing.assert_close(single.cls_attention[0], batch.cls_attention[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(single.features(index[i : i + 1])[0], batch.features(index)[i], rtol=1e-5, atol=2e-6)
        assert torch.equal(single.image_key[0], batch.image_key[i])


def test_the_order_of_an_index_is_kept_and_it_may_be_empty_or_repeat(make_tower, pixels):
    patches = wrap(make_tower())(pixels)
    every = patches.features()
    index = torch.tensor([[63, 0, 7, 7, 1]] * 3, dtype=torch.int32)
    torch.testing.assert_close(patches.features(index), rows(every, index.long()), rtol=1e-5, atol=2e-6)
    assert patches.features(index[:, :0]).shape == (3, 0, 64)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_scores_in_float32(make_tower, pixels, dtype):
    tower = make_tower().to(dtype)
    patches = wrap(tower)(pixels)
    assert patches.scores.dtype == patches.cls_attention.dtype == torch.float32
    assert patches.features().dtype == dtype
    assert torch.equal(patches.features(), stock(tower, pixels))
    torch.testing.assert_close(patches.scores, wrap(make_tower())(pixels).scores, rtol=0, atol=0.02)
    with torch.autocast("cpu", dtype):
        assert wrap(make_tower())(pixels).cls_attention.dtype == torch.float32


def test_gradients_are_those_of_the_stock_tower(make_tower, pixels):
    tower, reference = make_tower(), make_tower()
    index = torch.tensor([[3, 9, 60, 61, 62]] * 3)
    wrap(tower)(pixels).features(index).square().sum().backward()
    rows(reference(pixels, output_hidden_states=True).hidden_states[-2][:, 1:], index).square().sum().backward()
    for ours, theirs in zip(tower.parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


class Shapes(TorchDispatchMode):
    """Collects the last two dims of every tensor that torch makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        self.seen |= {tuple(x.shape[-2:]) for x in tensors if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize(("implementation", "squares"), [("sdpa", False), ("eager", True)])
def test_no_map_of_all_tokens_by_all_tokens(make_tower, pixels, implementation, squares):
    """The eager tower's own blocks make such maps: it shows that the watch works."""
    encoder = wrap(make_tower(implementation))
    with torch.no_grad(), Shapes() as shapes:
        patches = encoder(pixels)
        patches.features(best(patches, 8))
        patches.features()
    assert ((65, 65) in shapes.seen) is squares
    assert (1, 65) in shapes.seen
