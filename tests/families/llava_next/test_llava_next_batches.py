"""Batches of LLaVA-NeXT under `prune`: against rows alone and the stock model; training, copies and offloading too."""

import copy
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import UserError
from tests.support import tiny
from tests.support.checks import close
from tests.support.generation_modes import GREEDY
from tests.support.llava_next_cases import ONE, TWO, N, agree, both_positions, each_batch, each_mode
from tests.support.plain_next import MODES, PROMPTS, SIZES, NextPlain, inputs, traces

# --- batches


@pytest.mark.parametrize("side", ["left", "right"])
@each_mode
@each_batch
@torch.no_grad()
def test_rows_in_a_batch_are_rows_alone(model, texts, anyres, side):
    """Pictures of other grids, several of them, or none, in the rows beside."""
    batch, reference = inputs(texts, anyres=anyres, side=side), NextPlain(model, 5, anyres)
    rows = list(reference.rows(batch))
    with fastervlm.prune(model, 5, anyres=anyres) as handle:
        together = model(**batch).logits
    for ours, row in zip(together, rows, strict=True):
        alone = reference.logits(*row)
        padded = bool((batch["attention_mask"] == 0).any())
        close(ours[-len(alone) :] if side == "left" or not padded else ours[: len(alone)], alone)
    pictures = [picture for _, own in rows for picture in own or []]
    assert [trace.tokens.tolist() for trace in traces(handle)] == [reference.tokens(picture) for picture in pictures]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["left", "right"])
@each_batch
@torch.no_grad()
def test_keeping_all_gives_the_stock_logits_exactly(model, texts, side, dtype):
    one = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    batch = inputs(texts, side=side)
    every: list[dict[str, Any]] = [{}, {"newline": "all", "budget": "image"}, {"positions": "original"}]
    stock = one(**batch, labels=batch["input_ids"])
    for settings in every if dtype == torch.float32 else every[:1]:
        with fastervlm.prune(one, 1.0, **settings):
            output = one(**batch, labels=batch["input_ids"])
        assert torch.equal(output.logits, stock.logits)
        assert torch.equal(output.loss, stock.loss)


@torch.no_grad()
def test_keeping_all_of_every_size_gives_the_stock_logits_exactly(model):
    sizes = list(SIZES.values()) + [(3 * i % 130 + 1, 7 * i % 110 + 1) for i in range(20)]
    for size in sizes:
        batch = inputs(ONE, [size])
        stock = model(**batch).logits
        with fastervlm.prune(model, N):
            assert torch.equal(model(**batch).logits, stock), size


@each_mode
@torch.no_grad()
def test_pictures_shown_to_several_prompts_are_passed_once(model, anyres):
    """In any order, and with prompts without a picture between."""
    texts = ["<image>?", "<image> or <image>?", "None.", "<image><image>!"]
    sizes = [(60, 80), (20, 90), (40, 60)]
    shown = [1, 0, 1, 2, 2]
    batch, once = inputs(texts, [sizes[i] for i in shown], anyres), inputs(["<image>"] * 3, sizes, anyres)
    for name in ("pixel_values", "image_sizes"):
        batch[name] = once[name][shown]
    with fastervlm.prune(model, 5, anyres=anyres) as handle:
        each, kept = model(**batch).logits, [trace.tokens.tolist() for trace in traces(handle)]
        batch |= {"pixel_values": once["pixel_values"], "image_sizes": once["image_sizes"]}
        close(model(**batch, image_index=shown).logits, each)
        assert [trace.tokens.tolist() for trace in traces(handle)] == kept
        found = model.generate(**batch, image_index=torch.tensor(shown), **GREEDY)
        assert found.shape[1] > batch["input_ids"].shape[1]
        with pytest.raises(UserError, match="image_index"):
            model(**batch, image_index=[1, 0, 1, 2, 3])


@each_mode
@torch.no_grad()
def test_crops_may_be_passed_one_after_another(model, anyres):
    """(S, 3, H, W) for all pictures; and sizes as a list."""
    batch, reference = inputs(TWO, anyres=anyres), NextPlain(model, 5, anyres)
    crops = [pixels for pixels, _ in next(reference.rows(batch))[1]]
    with fastervlm.prune(model, 5, anyres=anyres):
        expected = model(**batch).logits
        batch["pixel_values"], batch["image_sizes"] = torch.cat(crops), batch["image_sizes"].tolist()
        assert torch.equal(model(**batch).logits, expected)


@each_mode
@both_positions
@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_without_a_mask_or_a_cache(model, anyres, positions, cache):
    batch, reference = inputs(TWO, anyres=anyres), NextPlain(model, 3, anyres, positions=positions)
    expected = reference.logits(*next(reference.rows(batch)))
    del batch["attention_mask"]
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        close(model(**batch, use_cache=cache).logits[0], expected)


@pytest.mark.parametrize("layer", [-1, 1, [-2, -1]])
@torch.no_grad()
def test_other_layers(layer):
    model, batch = tiny.llava_next(vision_feature_layer=layer), inputs(TWO)
    reference = NextPlain(model, 3)
    reference.layer, stock = layer, model(**batch).logits
    agree(model, batch, reference)
    with fastervlm.prune(model, N):
        assert torch.equal(model(**batch).logits, stock)


# --- training


@each_mode
def test_loss_and_gradients_are_those_by_hand(model, anyres):
    one, batch = copy.deepcopy(model), inputs(TWO, anyres=anyres)
    reference = NextPlain(one, 3, anyres)
    ids, pictures = next(reference.rows(batch))
    labels = torch.tensor(ids)[reference.columns(ids, pictures)]
    expected = torch.nn.functional.cross_entropy(reference.logits(ids, pictures)[:-1], labels[1:])
    expected.backward()
    one.train()
    with fastervlm.prune(one, 3, anyres=anyres):
        loss = one(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    close(loss, expected)
    for (name, ours), theirs in zip(one.named_parameters(), reference.model.parameters(), strict=True):
        if ours.grad is None:
            assert theirs.grad is None or not theirs.grad.any(), name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert one.model.multi_modal_projector.linear_1.weight.grad.any()
    assert one.model.vision_tower.embeddings.patch_embedding.weight.grad.any()
    assert (one.model.image_newline.grad is None) is (anyres == "paper") or not one.model.image_newline.grad.any()


# --- the handle


@torch.no_grad()
def test_remove_and_copies(model, tmp_path):
    one, batch = copy.deepcopy(model), inputs(PROMPTS["ragged"])
    stock, before, state = one(**batch).logits, dict(vars(one)), copy.deepcopy(one.state_dict())
    one.save_pretrained(tmp_path / "before")
    handle = fastervlm.prune(one, 3, newline="none", budget="image")
    mine, twin = one(**batch).logits, copy.deepcopy(one)
    assert list(one.state_dict()) == list(state)
    one.save_pretrained(tmp_path / "pruned")
    handle.trace.clear()
    assert torch.equal(twin(**batch).logits, mine)
    assert handle.trace == []
    handle.remove()
    assert dict(vars(one)) == before
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    assert torch.equal(one(**batch).logits, stock)
    assert torch.equal(twin(**batch).logits, mine)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "pruned" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


@pytest.mark.parametrize("anyres", MODES)
@torch.no_grad()
def test_offloaded_by_accelerate(anyres):
    """`image_newline` is a parameter of the inner model itself: outside of its forward it is on the meta device."""
    accelerate, model = pytest.importorskip("accelerate"), tiny.llava_next()
    batch = inputs(PROMPTS["ragged"], anyres=anyres)
    with fastervlm.prune(model, 5, anyres=anyres):
        logits, tokens = model(**batch).logits, model.generate(**batch, max_new_tokens=3, do_sample=False)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with fastervlm.prune(model, 5, anyres=anyres):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), tokens)
    assert {p.device.type for p in model.parameters()} == {"meta"}
