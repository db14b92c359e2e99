"""Video-LLaVA in the layout of its authors: its attention over time is read and computed, unpruned and pruned."""

from contextlib import nullcontext

import pytest
import torch
from transformers import VideoLlavaForConditionalGeneration

import fastervlm
from fastervlm.families.video_llava import family
from fastervlm.families.video_llava.model import TemporalVideoLlava
from tests.support import original, original_video
from tests.support.checks import close
from tests.support.original_video import ASKED, WAYS, batch, same_weights

# --- equal to the model it was written from, and to a plain one


@pytest.mark.parametrize(("timed", "files", "held"), WAYS)
def test_it_is_the_model_that_was_written(timed, files, held, scratch, tmp_path):
    expected = original_video.stock(timed)
    folder = original_video.write(expected, tmp_path / "tiny", scratch, files=files, inside=held)
    model, processor = fastervlm.load(folder, device="cpu")
    assert type(model) is type(expected) is (TemporalVideoLlava if timed else VideoLlavaForConditionalGeneration)
    assert not model.training
    same_weights(model, expected)
    tables = dict(expected.named_buffers())
    assert {name for name, _ in model.named_buffers()} == tables.keys()
    assert all(torch.equal(value, tables[name]) for name, value in model.named_buffers())
    for name in ("image_token_index", "video_token_index", "image_seq_length", "video_seq_length", "vision_feature_layer"):
        assert getattr(model.config, name) == getattr(expected.config, name)
    vision, wanted = model.config.vision_config, expected.config.vision_config
    assert all(getattr(vision, name) == getattr(wanted, name) for name in ("hidden_act", "add_time_attn", "hidden_size"))
    asked = batch(processor)
    with torch.no_grad():
        logits = model(**asked).logits
    close(logits[..., :-2], expected(**asked).logits[..., :-2].detach())
    mask = asked["attention_mask"].bool()
    torch.testing.assert_close(logits[mask], original_video.logits(model, asked)[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 16])
def test_clips_of_any_length_are_the_plain_ones(inside, frames):
    model, processor = fastervlm.load(inside, device="cpu")
    asked = batch(processor, frames, ASKED[:1])
    assert int((asked["input_ids"] == original_video.VIDEO_ID).sum()) == frames * (original.PATCHES + 1)
    with torch.no_grad():
        logits = model(**asked).logits
        ready = model.model.get_video_features(asked["pixel_values_videos"]).pooler_output
    torch.testing.assert_close(logits, original_video.logits(model, asked), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ready, original_video.features(model, "video", asked["pixel_values_videos"]), rtol=1e-4, atol=1e-4
    )


def test_time_matters(inside):
    """Without its attention over time, which the stock class drops, the model says something else."""
    model, processor = fastervlm.load(inside, device="cpu")
    stock = VideoLlavaForConditionalGeneration(model.config).eval()
    missing = stock.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert len(missing.unexpected_keys) == 3 * 11
    asked = batch(processor, texts=ASKED[:1])
    with torch.no_grad():
        assert (model(**asked).logits - stock(**asked).logits).abs().max() > 0.1


@pytest.mark.parametrize("layers", [-1, 1, [-2, 1]])
def test_the_layers_asked_for(inside, layers):
    model, _ = fastervlm.load(inside, device="cpu")
    if isinstance(layers, list):
        torch.manual_seed(0)
        model.model.multi_modal_projector.linear_1 = torch.nn.Linear(64, 32)
    pixels = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        told = model.model.get_video_features(pixels, vision_feature_layer=layers)
        every = model.model.video_tower(pixels, output_hidden_states=True).hidden_states
        wanted = torch.cat([every[x] for x in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        assert torch.equal(told.pooler_output, model.model.multi_modal_projector(wanted))
    assert told.pooler_output.shape == (6, original.PATCHES + 1, 32)


def test_a_tuple_where_one_is_asked_for(inside):
    model, _ = fastervlm.load(inside, device="cpu")
    pixels = torch.randn(1, 2, 3, 32, 32)
    told = model.model.get_video_features(pixels, return_dict=False)
    assert isinstance(told, tuple)
    assert torch.equal(told[1], model.model.get_video_features(pixels).pooler_output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_asked_for(whole, dtype):
    model, processor = fastervlm.load(whole, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    asked = batch(processor, texts=ASKED[:1]).to(dtype)
    assert model(**asked).logits.dtype == dtype


def test_checkpointing_gives_the_same_gradients(inside):
    grads = []
    for checkpointing in (False, True):
        model, processor = fastervlm.load(inside, device="cpu")
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.model.video_tower.gradient_checkpointing
        model.train()
        model(**batch(processor, texts=ASKED[:1])).logits.square().mean().backward()
        grads.append(model.model.video_tower.encoder.layers[0].temporal_embedding.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads)


# --- pruned


@pytest.mark.parametrize(
    "settings", [{"keep": 3}, {"keep": 3, "budget": "clip"}, {"keep": fastervlm.Mass(0.5)}, {"keep": fastervlm.Total(7)}]
)
def test_a_batch_of_clips_is_encoded_a_few_whole_clips_at_a_time(inside, monkeypatch, settings):
    """Three clips of two frames, by chunks of one, four and thirty-two frames; each clip goes through the tower once."""
    model, processor = fastervlm.load(inside, device="cpu")
    asked = processor(videos=[original_video.clip(2)] * 3, text=ASKED[:1] * 3, return_tensors="pt")
    torch.manual_seed(0)
    asked["pixel_values_videos"] = torch.randn_like(asked["pixel_values_videos"])
    logits, rows = [], []
    hook = model.model.video_tower.encoder.layers[0].register_forward_hook(lambda *call: rows.append(len(call[-1])))
    for chunk in (32, 4, 1):
        monkeypatch.setattr(family, "CHUNK", chunk)
        with fastervlm.prune(model, **settings), torch.no_grad():
            logits.append(model(**asked).logits)
    hook.remove()
    assert rows == [6, 4, 2, 2, 2, 2]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["generate", "forward"])
def test_keeping_all_is_the_unpruned_model(inside, way):
    model, processor = fastervlm.load(inside, device="cpu")
    model.generation_config.eos_token_id = None
    asked, told = batch(processor), []
    for context in (nullcontext(), fastervlm.prune(model, original.PATCHES, keep_cls=True)):
        with context, torch.no_grad():
            told.append(model.generate(**asked, max_new_tokens=8) if way == "generate" else model(**asked).logits)
    if way == "generate":
        assert torch.equal(*told)
    else:
        close(*told)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 4, 7, 8, 16])
@torch.no_grad()
def test_pruned_clips_are_the_plain_ones(timed, frames):
    """Each frame keeps its K best by its own [CLS], in their order, without [CLS] itself or with it."""
    model, pixels = original_video.stock(timed), torch.randn(2, frames, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    patches, embed, alone = original.PATCHES, model.get_input_embeddings(), original_video.language(model)
    begin, end = torch.tensor([1, 9, 30]), torch.tensor([13, 77, 5, 8])
    shown = torch.full((frames * (patches + 1),), original_video.VIDEO_ID)
    ids = torch.cat([begin, shown, end]).expand(2, -1)
    for keep in (1, patches // 10 + 1, patches // 2, patches):
        kept = original_video.features(model, "video", pixels, keep=keep).unflatten(0, (2, frames))
        for cls in (False, True):
            visual = (kept if cls else kept[:, :, 1:]).flatten(1, 2)
            embeds = torch.stack([torch.cat([embed(begin), one, embed(end)]) for one in visual])
            with fastervlm.prune(model, keep, keep_cls=cls) as handle:
                logits = model(input_ids=ids, pixel_values_videos=pixels).logits
            torch.testing.assert_close(logits, alone(inputs_embeds=embeds).logits, rtol=1e-4, atol=1e-4)
            assert [trace.num_tokens for trace in handle.trace] == [frames * (keep + cls)] * 2
