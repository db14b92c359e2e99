"""Generation under in-LLM pruning: with a KV cache as without, in any mode, batch and padding."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import fastervlm
from fastervlm import FastV, Simignore, UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import inllm_prompts, tiny_decoders
from tests.support.checks import close, one_sentence
from tests.support.plain_decoder import PlainDecoder, Stage, by_walk

GREEDY = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def new(model, inputs, **settings):
    """What is generated behind the prompt, one list a row."""
    return model.generate(**inputs, **{**GREEDY, **settings})[:, inputs["input_ids"].shape[1] :].tolist()


def alone(row):
    """The row of a batch as a batch of one."""
    ids, pictures = row
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), **pictures}


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2-mixed", "qwen3"])
@pytest.mark.parametrize("layer", [1, 3])
def test_greedy_with_a_cache_equals_the_plain_way_without(models, decoder, layer, mode):
    model, inputs = models(decoder=decoder), inllm_prompts.batch("ragged pictures")
    plain = PlainDecoder(model, Stage(layer, 5, mode))
    expected = [plain.greedy(ids, pictures, 16) for ids, pictures in inllm_prompts.rows(inputs)]
    with fastervlm.prune(model, keep=5, method=FastV(layer, mode)):
        assert new(model, inputs) == expected


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["one", "some without", "equal length, unequal pictures"])
def test_other_batches_and_backends(models, name, attention, mode):
    model, inputs = models(attention=attention), inllm_prompts.batch(name)
    plain = PlainDecoder(model, Stage(2, 4, mode))
    expected = [plain.greedy(ids, pictures, 12) for ids, pictures in inllm_prompts.rows(inputs)]
    with fastervlm.prune(model, keep=4, method=FastV(2, mode)):
        assert new(model, inputs, max_new_tokens=12) == expected


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_next_and_videos(models, mode):
    for kind, (inputs, rows) in {
        "llava_next": inllm_prompts.next_batch(["USER: <image>\nWhat is it?", "<image>? A."]),
        "video_llava": inllm_prompts.video_batch(),
    }.items():
        model = models(kind)
        plain = PlainDecoder(model, Stage(2, 6, mode))
        expected = [plain.greedy(ids, pictures, 8) for ids, pictures in rows]
        with fastervlm.prune(model, keep=6, method=FastV(2, mode)):
            assert new(model, inputs, max_new_tokens=8) == expected, kind


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2-mixed"])
@pytest.mark.parametrize("method", ["simignore", "random"])
def test_pruning_before_the_first_layer(models, method, decoder, mode):
    """Where the cache has no layer of full length left."""
    model, inputs = models(decoder=decoder), inllm_prompts.batch("ragged pictures")
    if method == "simignore":
        chosen, choose = Simignore(mode), by_walk(1, 1)
    else:
        chosen, choose = FastV(0, mode), None
    with fastervlm.prune(model, keep=5, method=chosen) as handle:
        got = new(model, inputs)
        drawn = [trace.index.tolist() for trace in handle.trace]
    for (ids, pictures), places, answer in zip(inllm_prompts.rows(inputs), drawn, got, strict=True):
        visual = [i for i, x in enumerate(ids) if x == 3]
        mine = choose or (lambda *_, v=visual, p=places: [v[i] for i in p])
        assert answer == PlainDecoder(model, Stage(0, 5, mode, mine)).greedy(ids, pictures, 16)


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_without_a_cache_each_step_chooses_anew(models, mode):
    model, inputs = models(), inllm_prompts.batch("ragged pictures")
    plain = PlainDecoder(model, Stage(2, 5, mode))
    expected = [plain.greedy(ids, pictures, 8, hold=False) for ids, pictures in inllm_prompts.rows(inputs)]
    held = [plain.greedy(ids, pictures, 8) for ids, pictures in inllm_prompts.rows(inputs)]
    with fastervlm.prune(model, keep=5, method=FastV(2, mode)):
        assert new(model, inputs, use_cache=False, max_new_tokens=8) == expected
    assert expected != held


@pytest.mark.parametrize("decoder", ["llama", "mistral"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_cache_is_as_short_as_computed(models, decoder, layer):
    """Full columns before the layer, text and kept tokens of the longest row behind; at most what a window needs."""
    model, inputs = models(decoder=decoder), inllm_prompts.batch("ragged pictures")
    method = FastV(layer) if layer else Simignore("drop")
    with fastervlm.prune(model, keep=5, method=method):
        out = model.generate(**inputs, **GREEDY | {"max_new_tokens": 4}, return_dict_in_generate=True)
    text = ((inputs["input_ids"] != 3) & inputs["attention_mask"].bool()).sum(1)
    left = int((text + (inputs["input_ids"] == 3).any(1) * 5).max())
    window = 12 - 1 if decoder == "mistral" else 10**9
    lengths = [min(inputs["input_ids"].shape[1] + 3, window)] * layer + [min(left + 3, window)] * (4 - layer)
    cache = out[CACHE]
    assert [kv.keys.shape[2] for kv in cache.layers] == lengths
    held = sum(kv.keys.nbytes + kv.values.nbytes for kv in cache.layers)
    assert held == sum(lengths) * 2 * len(text) * 2 * 8 * 4  # keys and values, rows, heads, width, float32
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0}],
)
def test_beams_of_a_batch_equal_those_alone(models, settings, mode):
    model, inputs = models(), inllm_prompts.batch("ragged pictures")
    times = settings.get("num_return_sequences", 1)
    with fastervlm.prune(model, keep=5, method=FastV(2, mode)) as handle:
        together = new(model, inputs, **settings)
        assert len(handle.trace) == 3 * settings["num_beams"]
        apart = [new(model, alone(row), **settings) for row in inllm_prompts.rows(inputs)]
        assert new(model, inputs, **settings, use_cache=True) == together
    assert together == [answer for answers in apart for answer in answers]
    assert len(together) == 3 * times


@pytest.mark.parametrize("decoder", ["llama", "mistral"])
def test_beams_and_samples_are_alike_in_both_modes(models, decoder):
    model, inputs, got = models(decoder=decoder), inllm_prompts.batch("ragged pictures"), []
    for mode in ("drop", "mask"):
        with fastervlm.prune(model, keep=5, method=FastV(2, mode)):
            torch.manual_seed(0)
            sampled = new(model, inputs, do_sample=True, num_return_sequences=3, top_k=5)
            got.append((sampled, new(model, inputs, num_beams=3, num_return_sequences=2)))
    assert got[0] == got[1]
    assert len({tuple(answer) for answer in got[0][0]}) == 9


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("method", [FastV(2), FastV(1), Simignore()])
def test_guesses_change_no_answer(models, method, mode):
    """Prompt lookup and an assistant read guesses together with the prompt, and cut the cache back."""
    model, inputs = models(), next(map(alone, inllm_prompts.rows(inllm_prompts.batch("one"))))
    method = type(method)(layer=method.layer, mode=mode) if isinstance(method, FastV) else Simignore(mode)
    assistant = tiny_decoders.llava(seed=0)
    assistant.generation_config.num_assistant_tokens = 4
    with fastervlm.prune(model, keep=5, method=method) as handle:
        expected = new(model, inputs, max_new_tokens=24)
        kept = handle.trace[0].index.tolist()
        assert new(model, inputs, max_new_tokens=24, prompt_lookup_num_tokens=3) == expected
        assert handle.trace[0].index.tolist() == kept
        assert new(model, inputs, max_new_tokens=24, assistant_model=assistant) == expected


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2-mixed"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_second_turn(models, decoder, layer, mode):
    """Text behind an answer sees what the first prompt kept, in `generate` and in `forward`."""
    model, inputs = models(decoder=decoder), inllm_prompts.batch("ragged pictures")
    method, choose = (FastV(layer, mode), None) if layer else (Simignore(mode), by_walk(1, 1))
    more = torch.tensor([[90, 91, 92], [93, 94, 95], [96, 97, 98]])
    with fastervlm.prune(model, keep=5, method=method):
        first = model.generate(**inputs, **GREEDY | {"max_new_tokens": 4}, return_dict_in_generate=True)
        ids = torch.cat((first.sequences, more), dim=1)
        mask = torch.cat((inputs["attention_mask"], torch.ones(3, 7).long()), dim=1)
        twin = copy.deepcopy(first[CACHE])
        second = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: first[CACHE]}, **GREEDY | {"max_new_tokens": 6})
        places = (mask.cumsum(1) - 1)[:, -4:]
        step = model(input_ids=ids[:, -4:], attention_mask=mask, position_ids=places, **{CACHE: twin}).logits[:, -1]
    for number, (row, pictures) in enumerate(inllm_prompts.rows(inputs)):
        plain = PlainDecoder(model, Stage(layer, 5, mode, choose))
        history = row + ids[number, inputs["input_ids"].shape[1] :].tolist()
        plain.last(row, pictures)
        held = plain.kept
        close(step[number], plain.last(history, pictures, len(row), held))
        answer = []
        for _ in range(6):
            answer.append(int(plain.last(history + answer, pictures, len(row), held).argmax()))
        assert second[number, ids.shape[1] :].tolist() == answer


def test_text_first_then_more_text(models):
    """A history without pictures is not pruned, and goes on from its cache."""
    model = models()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with fastervlm.prune(model, keep=2, method=FastV(2)) as handle:
            part = model(input_ids=ids[:, :12], use_cache=True)
            rest = model(input_ids=ids[:, 12:], **{CACHE: part[CACHE]})
    close(torch.cat((part.logits, rest.logits), dim=1), whole)
    assert [trace.num_tokens for trace in handle.trace] == [0]


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_the_cache_takes_its_columns_along(models, mode):
    """Rows reordered, repeated and selected, tokens cut off, copies: what follows is right."""
    model, inputs = models(), inllm_prompts.batch("ragged pictures")
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1).long()), dim=1)
    token = torch.tensor([[70], [71], [72]])

    def step(cache, order):
        return model(input_ids=token[order], attention_mask=mask[order], **{CACHE: cache}).logits[:, -1]

    with fastervlm.prune(model, keep=5, method=FastV(2, mode)), torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        expected = step(copy.deepcopy(cache), torch.arange(3))
        for order, change in {
            (2, 0, 1): lambda c, order: c.reorder_cache(order),
            (1, 1, 2, 0): lambda c, order: c.batch_select_indices(order),
            (0, 0, 1, 1, 2, 2): lambda c, _: c.batch_repeat_interleave(2),
        }.items():
            order = torch.tensor(order)
            changed = copy.deepcopy(cache)
            change(changed, order)
            close(step(changed, order), expected[order])
        longer = copy.deepcopy(cache)
        model(
            input_ids=torch.cat((token, token, token), dim=1),
            attention_mask=torch.cat((mask, torch.ones(3, 2).long()), dim=1),
            **{CACHE: longer},
        )
        longer.crop(-3)
        close(step(longer, torch.arange(3)), expected)
        cache.reset()
        again = model(**inputs, **{CACHE: cache})
        close(step(cache, torch.arange(3)), expected)
        assert again.logits.shape == (3, inputs["input_ids"].shape[1], 260)
        cache.reset()
    with torch.no_grad():
        assert torch.equal(model(**inputs, **{CACHE: cache}).logits, model(**inputs).logits)


def test_an_own_cache_and_a_used_one(models):
    model, inputs = models(), inllm_prompts.batch("one")
    with fastervlm.prune(model, keep=5, method=FastV(2)):
        expected = new(model, inputs)
        for cache in (DynamicCache(), DynamicCache(config=model.config)):
            assert new(model, inputs, **{CACHE: cache}) == expected
            lengths = [keys.shape[2] for keys, *_ in cache if keys is not None]
            assert lengths[3] == lengths[2] < lengths[1] == lengths[0]


@pytest.mark.parametrize("method", [FastV(2), FastV(2, "mask"), Simignore("drop"), Simignore("mask")])
def test_what_is_refused_on_the_way(models, method):
    model, inputs = models(), inllm_prompts.batch("one")
    who = type(method).__name__
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    with torch.no_grad():
        before = model(**inputs, use_cache=True)[CACHE]

    def cut(cache):
        cache.crop(-3)
        return cache

    def made():
        return model(**inputs, use_cache=True)[CACHE]

    one = {"input_ids": ids[:, -1:], "attention_mask": torch.ones(1, length + 1).long()}
    static = StaticCache(config=model.config, max_cache_len=128)
    tried = {
        f"{who} needs a DynamicCache and cannot work with a StaticCache": lambda: new(
            model, inputs, cache_implementation="static"
        ),
        f"{who} needs a DynamicCache and cannot": lambda: model(**inputs, **{CACHE: static}),
        f"{who} has to read a prompt at once; leave out prefill_chunk_size": lambda: new(model, inputs, prefill_chunk_size=8),
        f"Pictures cannot be added to a KV cache under {who}": lambda: model(
            input_ids=ids,
            attention_mask=torch.ones(1, 2 * length).long(),
            pixel_values=inputs["pixel_values"],
            **{CACHE: made()},
        ),
        f"This KV cache was made without {who}": lambda: model(**one, **{CACHE: before}),
        "A KV cache cannot be continued with use_cache=False": lambda: model.generate(
            input_ids=ids, attention_mask=inputs["attention_mask"], **{CACHE: made()}, **GREEDY, use_cache=False
        ),
        f"{who} finds pictures by the placeholders in input_ids": lambda: model(
            inputs_embeds=torch.zeros(1, 4, 48), attention_mask=torch.ones(1, 4)
        ),
        "The prompt holds image placeholders but there is no picture": lambda: model(input_ids=ids),
        "attention_mask must have the shape of input_ids": lambda: model(
            **inputs | {"attention_mask": torch.ones(1, 1, length, length)}
        ),
        "position_ids must rise": lambda: model(**inputs, position_ids=torch.arange(length)[None] % 7),
        "was cut down to": lambda: model(**one, **{CACHE: cut(made())}),
    }
    with fastervlm.prune(model, keep=5, method=method):
        mine = made()
        for sentence, call in tried.items():
            with pytest.raises(UserError, match=sentence) as error, torch.no_grad():
                call()
            one_sentence(error.value)
    with pytest.raises(UserError, match="continue it with the same model while it is pruned") as error, torch.no_grad():
        model(**one, **{CACHE: mine})
    one_sentence(error.value)


def test_labels_where_tokens_are_dropped(models):
    """Labels of text behind text give the loss of the twin that masks; one behind a visual token is refused."""
    model, inputs = models(), inllm_prompts.batch("ragged")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100).masked_fill(inputs["attention_mask"] == 0, -100)
    pads = torch.nn.functional.pad(inputs["attention_mask"][:, :-1] == 0, (1, 0))
    behind = torch.nn.functional.pad((inputs["input_ids"] == 3)[:, :-1], (1, 0))
    with torch.no_grad():
        with fastervlm.prune(model, keep=5, method=FastV(2, "mask")):
            expected = model(**inputs, labels=labels.masked_fill(behind | pads, -100)).loss
            assert model(**inputs, labels=labels).loss.isfinite()
        with fastervlm.prune(model, keep=5, method=FastV(2)):
            close(model(**inputs, labels=labels.masked_fill(behind, -100)).loss, expected)
            with pytest.raises(UserError, match="Labels right behind a visual token") as error:
                model(**inputs, labels=labels)
            one_sentence(error.value)
            with pytest.raises(UserError, match="Attention maps have unequal sizes") as error:
                model(**inputs, output_attentions=True)
            one_sentence(error.value)


def test_training_through_it(models):
    """Gradients flow, and checkpointed layers give the same ones."""
    model, inputs = copy.deepcopy(models()), inllm_prompts.batch("ragged")
    weight, got = model.model.language_model.layers[3].mlp.up_proj.weight, []
    with fastervlm.prune(model, keep=5, method=FastV(2)):
        for checkpoint in (False, True):
            if checkpoint:
                model.activation_checkpointing_enable({"use_reentrant": False})
                model.train()
            model.zero_grad()
            model(**inputs, use_cache=False).logits[:, -1].square().sum().backward()
            got.append(weight.grad.clone())
    assert got[0].abs().sum() > 0
    close(got[1], got[0])
