"""Every mode of calling a model under FastV and Simignore: at keep=all as the stock model, or refused with a sentence."""

import copy
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fastervlm
from fastervlm import FastV, Simignore, UserError
from tests.support import inllm_prompts, tiny_decoders
from tests.support.checks import close, one_sentence
from tests.support.generation_modes import tokens
from tests.support.model_kinds import WatchedCriterion, WatchedProcessor
from tests.support.plain import IMAGE_ID
from tests.support.plain_decoder import PlainDecoder, Stage, by_walk

KINDS: dict[str, Any] = {
    "llava": lambda: (inllm_prompts.batch("ragged pictures"), list(inllm_prompts.rows(inllm_prompts.batch("ragged pictures")))),
    "llava_next": lambda: inllm_prompts.next_batch(["USER: <image>\nWhat is it?", "<image>? A."]),
    "video_llava": inllm_prompts.video_batch,
}
METHODS: dict[str, Any] = {
    "fastv": FastV(1),
    "fastv, masked": FastV(1, "mask"),
    "simignore": Simignore(),
    "simignore, dropped": Simignore("drop"),
}
LENGTH = 6
GREEDY: dict[str, Any] = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def alone(rows):
    """The first row as a batch of one."""
    ids, pictures = rows[0]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), **pictures}


def generated(**options):
    def run(model, batch, rows):
        torch.manual_seed(3)
        return tokens(model.generate(**batch, **(GREEDY | options)))

    return run


def one_row(**options):
    return lambda model, batch, rows: generated(**options)(model, alone(rows), rows)


def assisted(model, batch, rows):
    draft = copy.deepcopy(DRAFTS[type(model)])
    draft.generation_config.num_assistant_tokens = 3
    return one_row(assistant_model=draft)(model, batch, rows)


def dictionary(model, batch, rows):
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True}
    out = model.generate(**batch, **GREEDY, **options)
    states = [state for step in out.hidden_states for state in step]
    return [out.sequences, *out.scores, *out.logits, *[state[shown(state, batch)] for state in states]]


def shown(state, batch):
    """Where hidden states (R, L, D) are those of tokens; at pads they mean nothing."""
    return batch["attention_mask"].bool() if state.shape[1] > 1 else torch.ones(state.shape[:2], dtype=torch.bool)


def callbacks(model, batch, rows):
    """What each of them was handed."""
    processor, criterion, prefixes = WatchedProcessor(), WatchedCriterion(), []
    model.generate(
        **batch,
        **GREEDY,
        logits_processor=LogitsProcessorList([processor]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        prefix_allowed_tokens_fn=lambda row, ids: prefixes.append(ids.clone()) or list(range(4, 250)),
    )
    return [*processor.seen, *criterion.seen, *prefixes]


def recipe(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    outputs = model._prefill(input_ids, generation_config, kwargs)
    return torch.cat((input_ids, outputs.logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)


TEXT = {"input_ids": torch.arange(40, 60).view(2, 10), "attention_mask": torch.ones(2, 10).long()}


def text_alone(model, batch, rows):
    return model.generate(**TEXT, **GREEDY)


@torch.no_grad()
def forward(model, batch, rows):
    return model(**batch).logits[batch["attention_mask"].bool()]


def labels_of(batch):
    """Labels at all text, that right behind a picture included."""
    ids = batch["input_ids"]
    visual = (ids == IMAGE_ID) | (ids == tiny_decoders.VIDEO_ID)
    return ids.masked_fill(visual | (batch["attention_mask"] == 0), -100)


@torch.no_grad()
def labels(model, batch, rows):
    return model(**batch, labels=labels_of(batch)).loss


@torch.no_grad()
def hidden_states(model, batch, rows):
    return [state[batch["attention_mask"].bool()] for state in model(**batch, output_hidden_states=True).hidden_states]


@torch.no_grad()
def attentions(model, batch, rows):
    model.set_attn_implementation("eager")
    try:
        return list(model(**batch, output_attentions=True).attentions)
    finally:
        model.set_attn_implementation("sdpa")


def gradients(model, batch, rows):
    model.zero_grad()
    model(**batch, labels=labels_of(batch)).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    assert {"lm_head.weight", "model.multi_modal_projector.linear_1.weight"} <= set(found)
    return list(found.values())


@torch.no_grad()
def ready_features(model, batch, rows):
    """Pictures that the caller encoded."""
    ids, pictures = rows[0]
    kind = "video" if "pixel_values_videos" in pictures else "image"
    features = getattr(model.model, f"get_{kind}_features")(**pictures).pooler_output
    ready = {kind: BaseModelOutputWithPooling(pooler_output=features)}
    text = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    return model.generate(**text, **GREEDY, mm_encoder_outputs=ready)


def continuous_batching(model, batch, rows):
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    out = model.generate_batch([list(range(40, 60)), list(range(50, 63))], config, small)
    assert len(out) == 2
    return [torch.tensor(out[name].generated_tokens) for name in sorted(out)]


MODES: dict[str, Any] = {
    "greedy": generated(),
    "sampling": generated(do_sample=True, top_k=0, num_return_sequences=2),
    "beams": generated(num_beams=3, num_return_sequences=2),
    "beam sampling": generated(num_beams=2, do_sample=True),
    "no cache": generated(use_cache=False),
    "static cache": generated(cache_implementation="static"),
    "chunked prefill": generated(prefill_chunk_size=5),
    "prompt lookup": one_row(prompt_lookup_num_tokens=3),
    "assisted": assisted,
    "dictionary": dictionary,
    "callbacks": callbacks,
    "guidance": generated(guidance_scale=1.7),
    "repetition penalty": generated(repetition_penalty=3.0, no_repeat_ngram_size=2),
    "custom generate": generated(custom_generate=recipe),
    "ready features": ready_features,
    "text alone": text_alone,
    "continuous batching of text": continuous_batching,
    "forward": forward,
    "labels": labels,
    "hidden states": hidden_states,
    "attentions": attentions,
    "gradients": gradients,
}
REFUSED = {
    "static cache": "needs a DynamicCache and cannot work with a StaticCache; leave out cache_implementation",
    "chunked prefill": "has to read a prompt at once; leave out prefill_chunk_size",
}
MADE: dict[str, Any] = {}
DRAFTS: dict[type, Any] = {}


@torch.no_grad()
def without_placeholders(model):
    """So that it never writes them, which no stock model can read again without a cache."""
    model.lm_head.weight[[IMAGE_ID, tiny_decoders.VIDEO_ID]] = 0
    return model


@pytest.fixture(scope="module", autouse=True)
def made():
    """A model of each kind, and the same again with other weights, for drafts."""
    for kind in KINDS:
        MADE[kind] = without_placeholders(getattr(tiny_decoders, kind)())
        DRAFTS[type(MADE[kind])] = without_placeholders(getattr(tiny_decoders, kind)(seed=1))
    yield
    MADE.clear()
    DRAFTS.clear()


def same(found, expected):
    if isinstance(found, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_keeping_all_is_the_stock_model_or_a_sentence(kind, mode):
    model, run = MADE[kind], MODES[mode]
    batch, rows = KINDS[kind]()
    stock = run(model, batch, rows)
    for method in METHODS.values():
        with fastervlm.prune(model, 1.0, method=method):
            if mode in REFUSED:
                with pytest.raises(UserError, match=REFUSED[mode]) as error:
                    run(model, batch, rows)
                one_sentence(error.value)
            else:
                same(run(model, batch, rows), stock)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_forward_is_the_stock_one():
    """In one family, by one method that drops and one that masks: tracing takes seconds each."""
    model, (batch, rows) = MADE["llava"], KINDS["llava"]()
    stock = forward(model, batch, rows)
    for method in (METHODS["fastv"], METHODS["simignore"]):
        torch._dynamo.reset()
        with fastervlm.prune(model, 1.0, method=method):
            found = torch.compile(model.forward, backend="eager")(**batch).logits
        close(found[batch["attention_mask"].bool()], stock)


STAGES: dict[str, Any] = {
    "fastv": lambda keep: Stage(1, keep),
    "fastv, masked": lambda keep: Stage(1, keep, "mask"),
    "simignore": lambda keep: Stage(0, keep, "mask", by_walk(1, 1)),
    "simignore, dropped": lambda keep: Stage(0, keep, "drop", by_walk(1, 1)),
}
# Modes whose answers below all are those of the slow way, token by token; those of one row ask for the first alone.
BY_HAND = {name: MODES[name] for name in ("greedy", "no cache", "prompt lookup", "assisted", "ready features")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", BY_HAND)
@pytest.mark.parametrize("method", METHODS)
def test_below_all_they_see_what_they_do_by_hand(kind, mode, method):
    model = MADE[kind]
    batch, rows = KINDS[kind]()
    plain = PlainDecoder(model, STAGES[method](5))
    with fastervlm.prune(model, 5, method=METHODS[method]):
        found = BY_HAND[mode](model, batch, rows)
    expected = [plain.greedy(ids, pictures, LENGTH, hold=mode != "no cache") for ids, pictures in rows[: len(found)]]
    assert found[:, -LENGTH:].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_below_all_callbacks_see_the_whole_prompt(kind, method):
    """In-LLM methods leave the prompt as long as it was."""
    model = MADE[kind]
    batch, rows = KINDS[kind]()
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5, method=METHODS[method]):
        seen = callbacks(model, batch, rows)
    for ids in seen:
        ids = ids if ids.dim() == 2 else ids[None]
        assert all(row[:length].tolist() in batch["input_ids"].tolist() for row in ids)


@pytest.mark.parametrize("method", METHODS)
def test_a_trace_counts_what_the_mask_shows(method):
    """Visual tokens that the caller hides are none of those that compete, and none of those that are told."""
    model = MADE["llava"]
    (ids, pictures), *_ = inllm_prompts.rows(inllm_prompts.batch("one"))
    visual = [place for place, token in enumerate(ids) if token == 3]
    mask = torch.ones(1, len(ids)).long()
    mask[0, visual[:4]] = 0
    call = {"input_ids": torch.tensor([ids]), "attention_mask": mask, **pictures}
    with fastervlm.prune(model, 5, method=METHODS[method]) as handle, torch.no_grad():
        model(**call)
    (trace,) = handle.trace
    assert len(trace.scores) == len(visual) - 4
    assert trace.num_tokens == 5
    assert int(trace.index.max()) < len(visual) - 4


def test_close_is_not_what_the_table_asks_for():
    """The table compares bit for bit; so that it can fail, fewer tokens give other answers in each kind."""
    for kind, make in KINDS.items():
        model, (batch, rows) = MADE[kind], make()
        stock = forward(model, batch, rows)
        for method in METHODS.values():
            with fastervlm.prune(model, 2, method=method), pytest.raises(AssertionError):
                close(forward(model, batch, rows), stock)
