"""`forward` of a pruned model: against a model pruned by hand, and against the stock model."""

import copy
import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastervlm
from fastervlm import KeptTokens, RandomTokens, TokenBudget, UniformGrid, UserError
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.plain import PROMPTS, Plain

N = tiny.PATCHES
ONE = PROMPTS["one"]


def real(output, batch, side):
    """Logits of each row, pads and fillers cut off: the reference says how long a row is."""
    for logits, length in zip(output.logits, batch, strict=True):
        yield logits[-length:] if side == "left" else logits[:length]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("keep", [1, 5, 15])
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@torch.no_grad()
def test_logits_are_those_of_a_model_pruned_by_hand(model, texts, keep, positions, side):
    batch, reference = plain.inputs(texts, side), Plain(model, keep, positions=positions)
    if positions == "original" and len(texts) > 1:  # a stock forward counts columns, pads too: say that pads do not count
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = [reference.logits(*row) for row in plain.rows(batch)]
    stock = model(**batch).logits
    with fastervlm.prune(model, keep, positions=positions):
        output = model(**batch)
    padded = bool((batch["attention_mask"] == 0).any())
    found = real(output, [len(x) for x in expected], side if padded else "left")
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    if "<image>" in texts[0]:
        assert (output.logits[0, -1] - stock[0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_without_a_mask_or_a_cache(model, positions, cache):
    """Gaps in the positions are no borders of packed sequences, as transformers would take them for."""
    batch, reference = plain.inputs(ONE), Plain(model, 5, positions=positions)
    expected = reference.logits(*next(plain.rows(batch)))
    del batch["attention_mask"]
    with fastervlm.prune(model, 5, positions=positions):
        close(model(**batch, use_cache=cache).logits[0], expected)
        model.train()
        close(model(**batch, use_cache=cache).logits[0], expected)


@pytest.mark.parametrize("keep", [N, N + 1, 1.0, TokenBudget(pruning_rate=0.0)])
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@torch.no_grad()
def test_keeping_all_gives_the_stock_logits_exactly(model, texts, side, positions, keep):
    batch = plain.inputs(texts, side)
    stock = model(**batch, labels=batch["input_ids"])
    with fastervlm.prune(model, keep, positions=positions):
        output = model(**batch, labels=batch["input_ids"])
    assert torch.equal(output.logits, stock.logits)
    assert torch.equal(output.loss, stock.loss)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_row_in_a_batch_is_the_row_alone(model, side):
    texts = PROMPTS["ragged pictures"]
    batch = plain.inputs(texts, side)
    with fastervlm.prune(model, 6):
        together = model(**batch).logits
        for logits, (ids, pixels) in zip(together, plain.rows(batch), strict=True):
            alone = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
            ours = logits[-len(alone) :] if side == "left" else logits[: len(alone)]
            close(ours, alone)


@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest", RandomTokens(5)])
@torch.no_grad()
def test_other_methods_choose_and_the_rest_is_the_same(model, method):
    batch, reference = plain.inputs(PROMPTS["two pictures"]), Plain(model, 5)
    with fastervlm.prune(model, 5, method=method) as handle:
        logits = model(**batch).logits[0]
    index = torch.stack([trace.index for trace in handle.trace])
    assert not torch.equal(index, reference.index(batch["pixel_values"]))
    reference.index = lambda pixel_values: index
    close(logits, reference.logits(*next(plain.rows(batch))))


@pytest.mark.parametrize("layer", [-1, -3, 1, 2, [-2, -1], [-1, -3], [1, 3, 2]])
@pytest.mark.parametrize("by_call", [False, True])
@torch.no_grad()
def test_layers_by_the_config_and_by_the_call(layer, by_call):
    model = tiny.llava(vision_feature_layer=layer)
    batch, reference = plain.inputs(ONE), Plain(model, 5, layer)
    stock = model(**batch).logits
    call = {"vision_feature_layer": layer} if by_call else {}
    if by_call:
        model.config.vision_feature_layer = -2 if isinstance(layer, int) else [-2] * len(layer)
    with fastervlm.prune(model, 5):
        logits = model(**batch, **call).logits[0]
        tokens = model.generate(**batch, **call, max_new_tokens=4, do_sample=False)
    close(logits, reference.logits(*next(plain.rows(batch))))
    assert tokens[0, -4:].tolist() == reference.greedy(*next(plain.rows(batch)), 4)
    with fastervlm.prune(model, N):
        assert torch.equal(model(**batch, **call).logits, stock)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@torch.no_grad()
def test_loss_is_that_of_the_rows_pruned_by_hand(model, texts, side):
    """Every token is a label, kept patches too: a label goes with its token. The first of a row has none before it."""
    batch, reference = plain.inputs(texts, side), Plain(model, 5)
    mask = batch["attention_mask"].bool()
    labels = batch["input_ids"].masked_fill(~mask, -100)
    labels[:, ::7] = -100
    padded = ~mask[:, 0]
    labels[padded, mask[padded].long().argmax(1)] = -100  # the stock model predicts it too, from a pad
    losses = []
    for (ids, pixels), row, real_columns in zip(plain.rows(batch), labels, mask, strict=True):
        wanted = row[real_columns][reference.columns(ids, pixels)][1:]
        logits = reference.logits(ids, pixels)[:-1]
        losses.append(torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100], reduction="none"))
    with fastervlm.prune(model, 5):
        output = model(**batch, labels=labels)
        as_tuple = model(**batch, labels=labels, return_dict=False)
    close(output.loss, torch.cat(losses).mean())
    assert torch.equal(as_tuple[0], output.loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_half_precision(dtype, implementation):
    model, batch = tiny.llava().to(dtype), plain.inputs(PROMPTS["ragged pictures"])
    model.set_attn_implementation(implementation)
    stock = model(**batch).logits
    with fastervlm.prune(model, 5) as handle:
        logits = model(**batch).logits
        assert model.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert handle.trace[0].scores.dtype == torch.float32
    with fastervlm.prune(tiny.llava(), 5, method=lambda patches, k: forced(handle, patches)) as exact:
        reference = exact.model(**batch).logits
    torch.testing.assert_close(logits[:, -1].float(), reference[:, -1], rtol=0.1, atol=0.1)
    if implementation == "sdpa":
        with fastervlm.prune(model, N):
            assert torch.equal(model(**batch).logits, stock)


def forced(handle, patches):
    """The choice of another handle's last call."""
    return KeptTokens(torch.stack([trace.index for trace in handle.trace]), patches.scores.shape[1])


@torch.no_grad()
def test_positional_arguments_and_signatures(model):
    batch = plain.inputs(PROMPTS["ragged"])
    signatures = [inspect.signature(getattr(model, name)) for name in ("forward", "generate")]
    with fastervlm.prune(model, 5):
        expected = model(**batch).logits
        assert torch.equal(model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits, expected)
        assert torch.equal(
            model(batch["input_ids"], batch["pixel_values"], attention_mask=batch["attention_mask"])[0], expected
        )
        assert [inspect.signature(getattr(model, name)) for name in ("forward", "generate")] == signatures


@torch.no_grad()
def test_a_text_only_forward_is_untouched(model):
    batch = plain.inputs(["No picture.", "None here either."])
    stock = model(**batch).logits
    with fastervlm.prune(model, 5) as handle:
        assert torch.equal(model(**batch).logits, stock)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, stock)
        assert handle.trace == []


@torch.no_grad()
def test_the_trace_tells_what_the_last_call_kept(model):
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5)
    index, scores = reference.index(batch["pixel_values"]), reference.scores(batch["pixel_values"])
    with fastervlm.prune(model, 5) as handle:
        assert handle.trace == []
        model(**batch)
        for trace, kept, marks in zip(handle.trace, index, scores, strict=True):
            assert trace.index.tolist() == kept.tolist()
            torch.testing.assert_close(trace.scores, marks, rtol=0, atol=1e-6)
            assert trace.grid == (4, 4)
            assert trace.layout == "flat"
            assert trace.mask.flatten().nonzero().flatten().tolist() == kept.tolist()
        model.generate(**plain.inputs(ONE, seed=3), max_new_tokens=1)
        assert len(handle.trace) == 1
        assert not handle.trace[0].scores.requires_grad
    assert len(handle.trace) == 1


# --- training, offloading, memory


def test_gradients_are_those_of_the_model_pruned_by_hand(model):
    batch, reference = plain.inputs(PROMPTS["two pictures"]), Plain(model, 5)
    ids, pixels = next(plain.rows(batch))
    labels = torch.tensor(ids)[reference.columns(ids, pixels)]
    torch.nn.functional.cross_entropy(reference.logits(ids, pixels)[:-1], labels[1:]).backward()
    model.train()
    with fastervlm.prune(model, 5):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    reached = 0
    for (name, ours), theirs in zip(model.named_parameters(), reference.model.parameters(), strict=True):
        if ours.grad is None:
            assert theirs.grad is None or not theirs.grad.any(), name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
            reached += 1
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.any()
    assert reached > 30


def test_gradient_checkpointing(model):
    batch, twin = plain.inputs(PROMPTS["ragged"]), copy.deepcopy(model)
    model.train()
    model.activation_checkpointing_enable()
    for one in (model, twin):
        with fastervlm.prune(one, 5):
            one(**batch, labels=batch["input_ids"]).loss.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("how", ["cpu_offload", "dispatch_model"])
@torch.no_grad()
def test_offloaded_by_accelerate(model, tmp_path, how):
    accelerate, batch = pytest.importorskip("accelerate"), plain.inputs(PROMPTS["ragged pictures"])
    stock = model(**batch).logits
    with fastervlm.prune(model, 5):
        logits, tokens = model(**batch).logits, model.generate(**batch, max_new_tokens=3, do_sample=False)
    if how == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert {p.device.type for p in model.parameters()} == {"meta"}
    else:
        places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "disk", "model.language_model": "disk"}
        accelerate.dispatch_model(model, places | {"lm_head": "cpu"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        assert {p.device.type for p in model.model.language_model.parameters()} == {"meta"}
    before = dict(vars(model))
    with fastervlm.prune(model, 5):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), tokens)
    assert dict(vars(model)) == before
    assert torch.equal(model(**batch).logits, stock)


class Squares(TorchDispatchMode):
    """Counts the tensors whose last two dims are one picture's tokens by its tokens."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            self.count += isinstance(x, torch.Tensor) and x.shape[-2:] == (N + 1, N + 1)
        return out


@pytest.mark.parametrize(("implementation", "seen"), [("sdpa", False), ("eager", True)])
@torch.no_grad()
def test_no_attention_map_of_all_patches_is_made(model, implementation, seen):
    """A tower in eager attention makes such maps itself: it shows that the watch works."""
    model.set_attn_implementation(implementation)
    with fastervlm.prune(model, 5), Squares() as squares:
        model(**plain.inputs(ONE))
        model.generate(**plain.inputs(ONE), max_new_tokens=2)
    assert (squares.count > 0) is seen


def test_uniform_grid_needs_no_ranking(model):
    with fastervlm.prune(model, 4, method=UniformGrid()) as handle:
        model(**plain.inputs(ONE))
    assert handle.trace[0].index.tolist() == [5, 7, 13, 15]


def test_a_picture_shown_to_several_prompts_may_be_passed_once():
    model = tiny.llava()
    picture = torch.randn(2, 3, tiny.IMAGE, tiny.IMAGE)
    ids = torch.tensor([[1, *[3] * tiny.PATCHES, 40 + i] for i in range(3)])
    with fastervlm.prune(model, 5) as handle, torch.no_grad():
        once = model(input_ids=ids, pixel_values=picture, image_index=[0, 0, 1]).logits
        assert len(handle.trace) == 3
        each = model(input_ids=ids, pixel_values=picture[[0, 0, 1]]).logits
        torch.testing.assert_close(once, each, rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match="image_index"):
            model(input_ids=ids, pixel_values=picture, image_index=[0, 0, 2])
