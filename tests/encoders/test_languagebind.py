"""LanguageBind's towers: equal to a slow plain reference, to CLIP where they are one, and of bounded memory."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from encoders import UserError, UserTypeError, languagebind_tower, wrap
from encoders.languagebind_tower import LanguageBindVisionModel
from tests.support.checks import one_sentence
from tests.support.plain_languagebind import whole

SMALL = {"intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8, "layer_norm_eps": 1e-5}


def config(**changes):
    told = {"hidden_size": 24, "image_size": 24, "hidden_act": "gelu", "add_time_attn": True, "num_frames": 8}
    return CLIPVisionConfig(**(SMALL | told | changes))


def tower(seed=0, **changes):
    """Random weights; attention is far from uniform and no bias is zero."""
    torch.manual_seed(seed)
    model = LanguageBindVisionModel(config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.15 if "q_proj" in name or "k_proj" in name else 0.05) * torch.randn_like(parameter)
    return model


def clips(frames, batch=2, size=24, seed=1):
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rows(features, index):
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def best(patches, keep):
    return patches.scores.topk(keep).indices.sort().values


# --- equal to the plain reference

CASES = [
    *((frames, {}) for frames in range(1, 17)),
    (5, {"image_size": 40, "num_frames": 5}),
    (3, {"image_size": 45, "num_frames": 4, "hidden_act": "quick_gelu"}),
    (4, {"num_frames": 1}),
    (1, {"num_frames": 1}),
    (2, {"hidden_size": 48, "num_frames": 2, "layer_norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("frames", "changes"), CASES)
def test_a_tower_with_attention_over_time_is_the_plain_one(frames, changes):
    model = tower(**changes)
    pixels = clips(frames, size=model.config.image_size)
    states, maps = whole(model.state_dict(), model.config, pixels)
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True)
    for ours, theirs in zip(out.hidden_states, states, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    for layer in (-2, -1, 1):
        check_encoder(model, pixels, layer, states, maps)


def check_encoder(model, pixels, layer, states, maps):
    with torch.no_grad():
        patches = wrap(model, select_layer=layer)(pixels)
        expected, depth = states[layer][:, 1:].float(), layer % len(states)
        seen = maps[depth - 1][:, :, 0, 1:].float()
        torch.testing.assert_close(patches.cls_attention, seen, rtol=0, atol=1e-6)
        torch.testing.assert_close(patches.scores, seen.mean(1), rtol=0, atol=1e-6)
        torch.testing.assert_close(patches.features(), expected, rtol=1e-5, atol=1e-5)
        for keep in (1, 2, expected.shape[1]):
            index = best(patches, keep)
            torch.testing.assert_close(patches.features(index), rows(expected, index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 8, 16])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_tower_without_is_the_plain_one_and_clip(frames, act):
    model = tower(add_time_attn=False, hidden_act=act)
    pixels = clips(frames)
    pictures = pixels.flatten(0, 1)
    states, maps = whole(model.state_dict(), model.config, pixels)
    check_encoder(model, pictures, -2, states, maps)
    clip = CLIPVisionModel(model.config).eval()
    clip.load_state_dict(model.state_dict())
    with torch.no_grad():
        theirs, ours = clip(pictures, output_hidden_states=True), model(pictures, output_hidden_states=True)
    for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 24), (32, 32), (20, 70)])
def test_other_sizes_by_stretched_positions(size):
    model = tower(add_time_attn=False)
    clip = CLIPVisionModel(model.config).eval()
    clip.load_state_dict(model.state_dict())
    pictures = torch.randn(2, 3, *size)
    with torch.no_grad():
        theirs = clip(pictures, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
        patches = wrap(model)(pictures, interpolate_pos_encoding=True)
        timed = wrap(tower())(pictures[None], interpolate_pos_encoding=True)
    assert patches.grid == timed.grid == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(patches.features(), theirs[:, 1:], rtol=1e-5, atol=1e-5)


def test_the_mean_of_cls_over_the_frames_is_pooled():
    model = tower()
    with torch.no_grad():
        out = model(clips(3))
        last = model.post_layernorm(out.last_hidden_state[:, 0]).view(2, 3, -1)
    assert out.hidden_states == (None,) * 4
    torch.testing.assert_close(out.pooler_output, torch.stack([clip.mean(0) for clip in last]))


@pytest.mark.parametrize("wanted", [-2, 0, 3, [-2, 0]])
def test_only_the_states_asked_for_are_kept(wanted):
    model, pixels = tower(), clips(2)
    with torch.no_grad():
        every = model(pixels, output_hidden_states=True).hidden_states
        some = model(pixels, output_hidden_states=wanted).hidden_states
    kept = {layer % 4 for layer in ([wanted] if isinstance(wanted, int) else wanted)}
    for i, state in enumerate(some):
        assert torch.equal(state, every[i]) if i in kept else state is None


# --- time


def test_the_table_of_times_is_stretched_first_on_first_and_last_on_last():
    model = tower(num_frames=3)
    block = model.encoder.layers[0]
    table = block.temporal_embedding[0].detach()
    with torch.no_grad():
        five = block._times(5)[:, 0]
    between = torch.stack([table[0], (table[0] + table[1]) / 2, table[1], (table[1] + table[2]) / 2, table[2]])
    torch.testing.assert_close(five, between)
    assert torch.equal(block._times(3)[:, 0], table)
    assert block._times(1) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_times_are_stretched_in_half_precision_too(dtype):
    block = tower().to(dtype).encoder.layers[0]
    expected = tower().encoder.layers[0]._times(11)
    assert block._times(11).dtype == dtype
    torch.testing.assert_close(block._times(11).float(), expected, rtol=1e-2, atol=1e-2)


def test_frames_see_each_other_and_clips_do_not():
    model, pixels = tower(), clips(4)
    changed = pixels.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        before, after = (wrap(model)(x) for x in (pixels, changed))
    differs = [
        not torch.allclose(one, other, atol=1e-4) for one, other in zip(before.features(), after.features(), strict=True)
    ]
    assert differs == [True] * 4 + [False] * 4


def test_each_frame_has_a_key_of_its_own():
    pixels = clips(3)
    keys = wrap(tower())(pixels).image_key
    single = wrap(tower(add_time_attn=False))(pixels.flatten(0, 1)).image_key
    assert keys.shape == (6,)
    assert torch.equal(keys, single)


def test_which_towers_take_clips():
    assert wrap(tower()).takes_clips
    assert not wrap(tower(add_time_attn=False)).takes_clips
    assert not wrap(CLIPVisionModel(config())).takes_clips


# --- chunks


@pytest.mark.parametrize("chunk", [1, 25, 40, 64])
@pytest.mark.parametrize("timed", [True, False])
def test_chunks_change_nothing(monkeypatch, chunk, timed):
    model, pixels = tower(add_time_attn=timed), clips(7)
    pixels = pixels if timed else pixels.flatten(0, 1)
    with torch.no_grad():
        expected, patches = model(pixels, output_hidden_states=True), wrap(model)(pixels)
        index = best(patches, 3)
        monkeypatch.setattr(languagebind_tower, "CHUNK", chunk)
        ours, own = model(pixels, output_hidden_states=True), wrap(model)(pixels)
        for one, other in zip(ours.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.cls_attention, patches.cls_attention, rtol=0, atol=1e-6)
        torch.testing.assert_close(own.features(index), patches.features(index), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.features(), patches.features(), rtol=1e-5, atol=1e-5)


class Widest(TorchDispatchMode):
    """The most numbers in any tensor whose last dim is that of the MLP."""

    def __init__(self, width):
        super().__init__()
        self.width, self.most = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.shape[-1:] == (self.width,):
                self.most = max(self.most, x.numel())
        return out


@pytest.mark.parametrize("keep", [None, 2])
def test_what_a_block_needs_does_not_grow_with_the_clip(monkeypatch, keep):
    monkeypatch.setattr(languagebind_tower, "CHUNK", 40)
    model, most, looked = tower(), [], []
    for block in model.encoder.layers:
        block.temporal_attn.register_forward_pre_hook(lambda module, args: looked.append(args[0].shape[:2].numel()))
    for frames in (12, 48):
        looked.clear()
        with torch.no_grad(), Widest(40) as widest:
            patches = wrap(model)(clips(frames, batch=1))
            patches.features(None if keep is None else best(patches, keep))
            model(clips(frames, batch=1))
        most.append(widest.most)
        assert frames <= max(looked) <= max(frames, 40)
    assert most[0] == most[1] == 40 * 40


# --- the published names, and refusals


def test_the_weights_bear_the_published_names():
    names = {
        name.replace("encoder.layers.0.", "@")
        for name in tower().state_dict()
        if "layers.1" not in name and "layers.2" not in name
    }
    projections = [f"{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")]
    norms = ["@layer_norm1", "@layer_norm2", "@temporal_layer_norm1", "pre_layrnorm", "post_layernorm"]
    both = [f"{name}.{kind}" for kind in ("weight", "bias") for name in (*norms, "@mlp.fc1", "@mlp.fc2")]
    assert names == {
        *(f"@{attention}.{name}" for attention in ("self_attn", "temporal_attn") for name in projections),
        *both,
        "@temporal_embedding",
        "embeddings.class_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
    }
    assert tower().state_dict()["encoder.layers.2.temporal_embedding"].shape == (1, 8, 24)


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (
            torch.zeros(6, 3, 24, 24),
            r"reads whole clips: pixel_values of shape \(B, F, 3, H, W\) are needed, but these are \(6, 3",
        ),
        (torch.zeros(1, 0, 3, 24, 24), r"reads whole clips: .* but these are \(1, 0, 3, 24, 24\)"),
        (torch.zeros(1, 2, 4, 24, 24), r"pixel_values of shape \(B, 3, H, W\) are needed, but these are \(2, 4, 24, 24\)"),
        (torch.zeros(1, 2, 3, 24, 32), "reads pictures of 24 x 24 pixels, but these are 24 x 32"),
    ],
)
def test_pixels_of_another_shape(pixels, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        wrap(tower())(pixels)
    one_sentence(caught.value)


def test_clips_for_a_tower_of_pictures():
    with pytest.raises(UserError, match=r"\(B, 3, H, W\) are needed, but these are \(1, 2, 3, 24, 24\)"):
        wrap(tower(add_time_attn=False))(clips(2, batch=1))
    with pytest.raises(UserTypeError, match="must be one tensor, not a list"):
        wrap(tower())([clips(2)])  # type: ignore[arg-type]


def test_no_other_activation():
    with pytest.raises(UserError, match="hidden_act='relu' is not known; it must be gelu or quick_gelu"):
        tower(hidden_act="relu")


def test_offloaded_blocks_are_refused():
    model = copy.deepcopy(tower())
    model.encoder.layers[1].temporal_embedding = torch.nn.Parameter(torch.empty(1, 8, 24, device="meta"))
    with pytest.raises(UserError, match="are offloaded and cannot be read"):
        wrap(model)(clips(2))
