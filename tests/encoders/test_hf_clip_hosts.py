"""What surrounds the CLIP adapter: offloading, quantising, training, later changes."""

import pytest
import torch
from transformers import BitsAndBytesConfig, CLIPVisionModel

from encoders import wrap
from encoders.hf_clip import HfClipEncoder


def run(tower, pixel_values, keep=8):
    """Scores and kept features of a tower."""
    with torch.no_grad():
        patches = wrap(tower)(pixel_values)
        return patches.scores, patches.features(patches.scores.topk(keep).indices)


def test_dropout_of_the_feature_block_in_training(make_tower, pixels):
    tower = make_tower(attention_dropout=0.5, num_hidden_layers=1).train()
    encoder = wrap(tower, select_layer=1)
    assert not torch.equal(encoder(pixels).features(), encoder(pixels).features())
    assert torch.equal(encoder(pixels).scores, encoder(pixels).scores)


def test_offloaded_to_the_memory_of_the_host(make_tower, pixels):
    accelerate = pytest.importorskip("accelerate")
    tower = accelerate.cpu_offload(make_tower(), execution_device=torch.device("cpu"))
    assert {p.device.type for p in tower.parameters()} == {"meta"}
    for ours, theirs in zip(run(tower, pixels), run(make_tower(), pixels), strict=True):
        assert torch.equal(ours, theirs)
    assert {p.device.type for p in tower.parameters()} == {"meta"}


def test_dispatched_to_memory_and_disk(make_tower, pixels, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    device_map = {"embeddings": "disk", "pre_layrnorm": "cpu", "post_layernorm": "disk"}
    device_map |= {f"encoder.layers.{i}": "disk" if i % 2 == 0 else "cpu" for i in range(4)}
    tower = accelerate.dispatch_model(make_tower(), device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert {p.device.type for p in tower.encoder.layers[2].parameters()} == {"meta"}
    for ours, theirs in zip(run(tower, pixels), run(make_tower(), pixels), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(make_tower, pixels, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    make_tower().save_pretrained(tmp_path)
    quantisation = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    tower = CLIPVisionModel.from_pretrained(tmp_path, quantization_config=quantisation, device_map="cpu")
    assert f"{bits}bit" in type(tower.get_submodule("encoder.layers.2.self_attn.q_proj")).__name__
    with torch.no_grad():
        expected = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        patches = wrap(tower)(pixels)
        index = patches.scores.topk(16).indices
        every, some = patches.features(), patches.features(index)
    kept = expected.gather(1, index.unsqueeze(-1).expand(-1, -1, 64))
    torch.testing.assert_close(every, expected, rtol=1e-5, atol=1e-5)
    # 8-bit products cast their inputs by outliers of the whole matrix: other rows, other rounding.
    torch.testing.assert_close(some, kept, rtol=1e-2, atol=1e-2 if bits == 8 else 1e-5)


def test_an_encoder_follows_later_changes_of_its_tower(make_tower, pixels):
    tower = make_tower()
    encoder = wrap(tower)
    assert isinstance(encoder, HfClipEncoder)
    with torch.no_grad():
        tower.encoder.layers[2].mlp.fc2.bias += 1
    expected = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(encoder(pixels).features(), expected)
