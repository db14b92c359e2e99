"""What a prompt's logits are under in-LLM pruning, against every layer done by hand."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import fastervlm
from fastervlm import FastV, Simignore, UserError
from tests.support import inllm_prompts, tiny_decoders
from tests.support.checks import close, one_sentence
from tests.support.plain import PROMPTS
from tests.support.plain_decoder import PlainDecoder, Stage, by_walk


def agree(model, method, keep, inputs, rows, *stages, **extra):
    """Compare all logits and the traces with the plain way, row by row; returns the handle."""
    plain = PlainDecoder(model, *stages)
    with fastervlm.prune(model, keep=keep, method=method) as handle, torch.no_grad():
        logits = model(**inputs, **extra).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    for number, ((ids, pictures), columns) in enumerate(zip(rows, inllm_prompts.place(inputs), strict=True)):
        expected = plain.logits(ids, pictures)
        for column, value in expected.items():
            if column not in plain.masked:  # nobody reads those, and the first may have nothing to look at
                close(logits[number, columns[column]], value)
        visual = [i for i, x in enumerate(ids) if x in (3, tiny_decoders.VIDEO_ID)]
        if visual and stages[0].offset == 0:
            assert [visual[i] for i in handle.trace[number].index.tolist()] == plain.kept[method.layer]
            assert len(handle.trace[number].scores) == len(visual)
        if method.mode == "drop":
            gone = set(range(len(ids))) - set(expected)
            assert all(bool((logits[number, columns[column]] == 0).all()) for column in gone)
    return handle


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("keep", [1, 5, 0.5])
def test_fastv_equals_the_plain_way(models, layer, mode, keep):
    inputs = inllm_prompts.batch("ragged pictures")
    agree(models(), FastV(layer, mode), keep, inputs, inllm_prompts.rows(inputs), Stage(layer, keep, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PROMPTS)
def test_any_batch_on_any_side(models, name, side, mode):
    inputs = inllm_prompts.batch(name, side)
    agree(models(), FastV(2, mode), 6, inputs, inllm_prompts.rows(inputs), Stage(2, 6, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("decoder", [name for name in tiny_decoders.DECODERS if name != "llama"])
@pytest.mark.parametrize("layer", [1, 2])
def test_any_decoder(models, decoder, layer, mode):
    inputs = inllm_prompts.batch("ragged pictures")
    agree(models(decoder=decoder), FastV(layer, mode), 6, inputs, inllm_prompts.rows(inputs), Stage(layer, 6, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2-mixed"])
@pytest.mark.parametrize("name", ["one", "ragged pictures"])
def test_eager_attention(models, name, decoder, mode):
    inputs = inllm_prompts.batch(name)
    agree(models(decoder=decoder, attention="eager"), FastV(2, mode), 4, inputs, inllm_prompts.rows(inputs), Stage(2, 4, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_llava_next(models, side, mode):
    inputs, rows = inllm_prompts.next_batch(["USER: <image>\nWhat is it?", "<image>? A."], side)
    agree(models("llava_next"), FastV(2, mode), 9, inputs, rows, Stage(2, 9, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_videos_and_pictures(models, side, mode):
    inputs, rows = inllm_prompts.video_batch(side)
    agree(models("video_llava"), FastV(1, mode), 7, inputs, rows, Stage(1, 7, mode))


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize(("step", "start"), [(1, 1), (2, 0), (3, 2)])
@pytest.mark.parametrize("name", ["one", "ragged pictures"])
def test_simignore_equals_the_walk(models, name, step, start, mode):
    inputs = inllm_prompts.batch(name)
    stage = Stage(0, 6, mode, by_walk(step, start))
    agree(models(), Simignore(mode, step, start), 6, inputs, inllm_prompts.rows(inputs), stage)


@pytest.mark.parametrize("keep", [3, 13, 15])
def test_simignore_by_a_text_of_its_own(models, keep):
    """A text of one word has fewer pairs than would be walked: the best cosines fill up."""
    inputs = inllm_prompts.batch("one")
    for text, step in (([77, 88, 99], 1), ([77], 1), ([77], 3)):
        stage = Stage(0, keep, "mask", by_walk(step, 1, text))
        selector = torch.tensor([[*text, 0, 0]])
        agree(models(), Simignore(step=step), keep, inputs, inllm_prompts.rows(inputs), stage, selector_ids=selector)


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_the_offsets_of_the_reference(models, mode):
    inputs = inllm_prompts.batch("ragged")
    method = FastV(2, mode, reference_offsets=True)
    handle = agree(models(), method, 5, inputs, inllm_prompts.rows(inputs), Stage(2, 5, mode, offset=1))
    assert all(0 in trace.index.tolist() for trace in handle.trace)


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_picture_at_the_end_keeps_the_token_that_asks(models, layer, mode):
    inputs = inllm_prompts.plain.inputs(["So <image>", "And this: <image>"])
    handle = agree(models(), FastV(layer, mode), 2, inputs, inllm_prompts.rows(inputs), Stage(layer, 2, mode))
    assert [trace.index.tolist()[-1] for trace in handle.trace] == [15, 15]
    assert [trace.num_tokens for trace in handle.trace] == [2, 2]


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_both_modes_answer_alike(models, layer, mode):
    """And keeping all changes not a bit."""
    model, inputs = models(), inllm_prompts.batch("ragged pictures")
    with torch.no_grad():
        whole = model(**inputs).logits
        with fastervlm.prune(model, keep=1.0, method=FastV(layer, mode)):
            assert torch.equal(model(**inputs).logits, whole)
        with fastervlm.prune(model, keep=5, method=FastV(layer, "drop")) as first:
            short = model(**inputs).logits[:, -1]
        with fastervlm.prune(model, keep=5, method=FastV(layer, "mask")) as second:
            close(model(**inputs).logits[:, -1], short)
    assert not torch.allclose(whole[:, -1], short, atol=1e-3)
    for one, other in zip(first.trace, second.trace, strict=True):
        assert torch.equal(one.index, other.index)
        close(one.scores, other.scores)


def test_the_random_draw(models):
    """Frozen by seed and prompt: alone, in a batch, on either side."""
    model, inputs = models(), inllm_prompts.batch("ragged")
    drawn = {}
    for seed in (0, 0, 1):
        with fastervlm.prune(model, keep=5, method=FastV(0, random_seed=seed)) as handle, torch.no_grad():
            for given in (inputs, inllm_prompts.batch("ragged", "right")):
                model(**given)
                drawn.setdefault(seed, []).append([trace.index.tolist() for trace in handle.trace])
            for number, (ids, pictures) in enumerate(inllm_prompts.rows(inputs)):
                model(input_ids=torch.tensor([ids]), **pictures)
                assert handle.trace[0].index.tolist() == drawn[seed][0][number]
    assert all(each == drawn[0][0] for each in drawn[0])
    assert drawn[1][0] != drawn[0][0]
    assert len({tuple(row) for row in drawn[0][0]}) == 3
    assert all(len(row) == 5 for row in drawn[0][0])


def test_random_draws_are_even(models):
    """Each place is drawn about as often as any other."""
    model, counts = models(), torch.zeros(16)
    ids, pictures = next(iter(inllm_prompts.rows(inllm_prompts.batch("one"))))
    with fastervlm.prune(model, keep=4, method=FastV(0)) as handle, torch.no_grad():
        for number in range(300):
            model(input_ids=torch.tensor([[*ids, 10 + number % 200, 10 + number // 200]]), **pictures)
            counts[handle.trace[0].index] += 1
    assert counts.min() > 45
    assert counts.max() < 110


def test_hidden_states_have_the_length_of_the_prompt(models):
    model, inputs = models(), inllm_prompts.batch("ragged pictures")
    with fastervlm.prune(model, keep=5, method=FastV(2)) as handle, torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    with fastervlm.prune(model, keep=5, method=FastV(2, "mask")), torch.no_grad():
        masked = model(**inputs, output_hidden_states=True)
    assert len(out.hidden_states) == tiny_decoders.LAYERS + 1
    visual = inputs["input_ids"] == 3
    for number, (one, other) in enumerate(zip(out.hidden_states, masked.hidden_states, strict=True)):
        stays = inputs["attention_mask"].bool()
        if number > 2:
            for row, trace in enumerate(handle.trace):
                gone = visual[row].nonzero().flatten().tolist()
                stays[row, [c for i, c in enumerate(gone) if i not in trace.index.tolist()]] = False
            assert bool((one[~stays] == 0).all())
        close(one[stays], other[stays])


def test_attention_maps_under_a_mask(models):
    model, inputs = models(attention="eager"), inllm_prompts.batch("one")
    with fastervlm.prune(model, keep=5, method=FastV(2, "mask")) as handle, torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    visual = (inputs["input_ids"][0] == 3).nonzero().flatten()
    lost = [c for i, c in enumerate(visual.tolist()) if i not in handle.trace[0].index.tolist()]
    assert float(maps[1][0, :, -1, lost].min()) > 0
    assert float(maps[2][0, :, -1, lost].max()) == 0
    close(handle.trace[0].scores, maps[1][0].mean(0)[-1, visual])


def unpadded_attention(module, query, key, value, mask, scaling=None, position_ids=None, **_):
    """What flash attention computes: each row's real tokens side by side, causal from the end; gaps in positions mislead it."""
    if position_ids is not None and len(query) == 1:
        assert position_ids.shape[-1] == query.shape[2]
        assert bool((position_ids.diff(dim=-1) == 1).all())
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = torch.zeros_like(query)
    for row in range(len(query)):
        real = torch.ones(key.shape[2], dtype=torch.bool) if mask is None else mask[row]
        asking = real[-query.shape[2] :] if query.shape[2] > 1 else torch.ones(1, dtype=torch.bool)
        q, k, v = query[row][:, asking], key[row][:, real], value[row][:, real]
        count, total = q.shape[1], k.shape[1]
        seen = torch.ones(count, total).tril(total - count).bool()
        weights = (q @ k.transpose(1, 2) * scaling).masked_fill(~seen, float("-inf")).softmax(-1)
        out[row][:, asking] = weights @ v
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def flash():
    """An attention backend that gets its masks as flash attention does, under a name of that kind."""
    AttentionInterface.register("plain_flash", unpadded_attention)
    AttentionMaskInterface.register("plain_flash", flash_attention_mask)
    yield "plain_flash"
    del AttentionInterface._global_mapping["plain_flash"], AttentionMaskInterface._global_mapping["plain_flash"]


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("name", ["one", "ragged pictures", "equal length, unequal pictures"])
def test_masks_of_flash_attention(flash, name, mode):
    model, inputs = tiny_decoders.llava(), inllm_prompts.batch(name)
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with fastervlm.prune(model, keep=6, method=FastV(2, mode)):
        expected = model.generate(**inputs, **greedy)
    model.set_attn_implementation({"text_config": flash})
    agree(model, FastV(2, mode), 6, inputs, inllm_prompts.rows(inputs), Stage(2, 6, mode))
    with fastervlm.prune(model, keep=6, method=FastV(2, mode)):
        assert torch.equal(model.generate(**inputs, **greedy), expected)


def test_flash_attention_has_no_mask_for_a_window(flash):
    model = tiny_decoders.llava("mistral")
    model.set_attn_implementation({"text_config": flash})
    with fastervlm.prune(model, keep=6, method=FastV(2)), pytest.raises(UserError, match="sliding window") as error:
        model(**inllm_prompts.batch("one"))
    one_sentence(error.value)


@pytest.mark.parametrize("method", [FastV(2), Simignore("drop")], ids=repr)
@pytest.mark.parametrize("pruned_first", [True, False])
def test_offloaded_by_accelerate(models, method, pruned_first):
    accelerate, inputs, model = pytest.importorskip("accelerate"), inllm_prompts.batch("ragged pictures"), tiny_decoders.llava()
    with fastervlm.prune(model, keep=5, method=method), torch.no_grad():
        expected = model(**inputs).logits
    steps = [lambda: fastervlm.prune(model, keep=5, method=method), lambda: accelerate.cpu_offload(model, torch.device("cpu"))]
    for step in steps if pruned_first else steps[::-1]:
        step()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
