"""What users hand to `generate` sees the unpruned prompt, in every mode: as without pruning at K = N, as by hand below it."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import logits_process

import fastervlm
from tests.support.generation_modes import BEAMS, GREEDY, MODES, SAMPLES, padded, tokens
from tests.support.model_kinds import KINDS, WatchedCriterion, WatchedProcessor, loop_by_hand

ALL_MODES: dict[str, dict[str, Any]] = {
    **{name: mode for name, mode in MODES.items() if name != "chunk of one"},
    **{name: BEAMS[name] for name in ("beams", "beams, several answers")},
    **{name: SAMPLES[name] for name in ("sampling", "several answers", "beam sampling")},
}
ONE_ROW = {"prompt lookup": {"prompt_lookup_num_tokens": 3}}
ENDS: dict[str, Any] = {"sequence_bias": {(2,): 9.0}}  # answers that end at once, unless they must not
ECHOES: dict[str, Any] = {"sequence_bias": {(token,): 9.0 for token in (17, 34, 85, 224)}}  # answers out of words of the prompt
# Arguments by which transformers builds processors and criteria that read the prompt or its length; T is its length.
SETTINGS: dict[str, Any] = {
    "repetition penalty": lambda T: {"repetition_penalty": 3.0},
    "n-grams": lambda T: {"no_repeat_ngram_size": 1},
    "n-grams of the prompt": lambda T: {"encoder_no_repeat_ngram_size": 1, **ECHOES},
    "penalty of the prompt": lambda T: {"encoder_repetition_penalty": 4.0},
    "least length": lambda T: {"min_length": T + 4, **ENDS},
    "least new": lambda T: {"min_new_tokens": 5, **ENDS},
    "greatest length": lambda T: {"max_length": T + 3, "max_new_tokens": None},
    "forced end": lambda T: {"forced_eos_token_id": 2, "max_length": T + 4, "max_new_tokens": None},
    "bad words": lambda T: {"bad_words_ids": [[token] for token in range(4, 260, 2)]},
    "bias of a sequence": lambda T: {"sequence_bias": {(7, 9): 5.0, (11,): 2.0}},
    "exponential decay": lambda T: {"exponential_decay_length_penalty": (1, 9.0)},
    "suppressed at the beginning": lambda T: {"begin_suppress_tokens": list(range(4, 130))},
    "guidance": lambda T: {"guidance_scale": 1.7},
}
kinds = pytest.mark.parametrize("kind", KINDS)


class Prefer(LogitsProcessor):
    """Prefers tokens by a sum over all that it is handed."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        places = torch.arange(1, input_ids.shape[1] + 1)
        liked = (input_ids * places).sum(dim=1, keepdim=True) % 251 + torch.arange(5)
        return scores.scatter_add(1, 4 + liked % 250, torch.full_like(liked, 3.0, dtype=scores.dtype))


class StopAfter(StoppingCriteria):
    """Ends each row when a number of tokens stand behind a prompt of T."""

    def __init__(self, T, count):
        self.length = T + count

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def callbacks(T) -> dict[str, Any]:
    """Callbacks of users that go by the prompt and its length."""
    return {
        "processor": {"logits_processor": LogitsProcessorList([Prefer()])},
        "criterion": {"stopping_criteria": StoppingCriteriaList([StopAfter(T, 3)])},
        "prefix function": {
            "prefix_allowed_tokens_fn": lambda row, ids: [4 + (int(ids[:T].sum()) + len(ids) + 17 * i) % 250 for i in range(9)]
        },
    }


def generated(model, batch, **options):
    """Answers without placeholders, which random models write too and which no loop without a cache can read again."""
    torch.manual_seed(5)
    never = [token for name in ("image", "video") if (token := getattr(model.config, f"{name}_token_id", None)) is not None]
    return tokens(model.generate(**batch, **({"suppress_tokens": never} | GREEDY | options)))


@kinds
@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("what", [*SETTINGS, "processor", "criterion", "prefix function"])
def test_keeping_all_is_the_stock_model(kind, mode, what):
    if what == "guidance" and mode not in ("greedy", "no cache"):
        pytest.skip("stock guidance knows no beams, and its own cache is a dynamic one")
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    T = batch["input_ids"].shape[1]
    options = SETTINGS[what](T) if what in SETTINGS else callbacks(T)[what]
    stock = generated(model, batch, **(ALL_MODES[mode] | options))
    with fastervlm.prune(model, **tested.whole):
        assert torch.equal(generated(model, batch, **(ALL_MODES[mode] | options)), stock)


@pytest.mark.parametrize("what", [*SETTINGS, "processor", "criterion", "prefix function"])
def test_each_of_them_changes_answers(what):
    """So that the table above tells something."""
    for tested in KINDS.values():
        model, batch = tested.model(), tested.inputs(tested.ragged)
        T = batch["input_ids"].shape[1]
        options = SETTINGS[what](T) if what in SETTINGS else callbacks(T)[what]
        without = {"sequence_bias": options["sequence_bias"]} if len(options) > 1 and "sequence_bias" in options else {}
        if not torch.equal(generated(model, batch, **options), generated(model, batch, **without)):
            return
    pytest.fail("no model answers otherwise")


@kinds
@pytest.mark.parametrize("mode", ALL_MODES | ONE_ROW)
@pytest.mark.parametrize("keep", [3, 0.5])
def test_callbacks_see_the_unpruned_prompt(kind, mode, keep):
    tested, options = KINDS[kind], (ALL_MODES | ONE_ROW)[mode]
    model, batch = tested.model(), tested.inputs(tested.one if mode in ONE_ROW else tested.ragged)
    ids, processor, criterion, prefixes = batch["input_ids"], WatchedProcessor(), WatchedCriterion(), []
    watched = {
        "logits_processor": LogitsProcessorList([processor]),
        "stopping_criteria": StoppingCriteriaList([criterion]),
        "prefix_allowed_tokens_fn": lambda row, seen: prefixes.append((row, seen.clone())) or list(range(260)),
    }
    with fastervlm.prune(model, keep):
        found = generated(model, batch, **options, **watched)
    assert processor.seen
    assert criterion.seen
    for seen in processor.seen + criterion.seen:
        assert torch.equal(seen[:, : ids.shape[1]], ids.repeat_interleave(len(seen) // len(ids), dim=0))
    assert prefixes
    assert all(torch.equal(seen[: ids.shape[1]], ids[row]) for row, seen in prefixes)
    assert processor.seen[0].shape[1] == ids.shape[1]
    assert criterion.seen[-1].shape[1] >= found.shape[1]


PROCESSORS: dict[str, Any] = {
    "repetition penalty": (lambda ids: logits_process.RepetitionPenaltyLogitsProcessor(3.0), {"repetition_penalty": 3.0}),
    "n-grams": (lambda ids: logits_process.NoRepeatNGramLogitsProcessor(2), {"no_repeat_ngram_size": 2}),
    "penalty of the prompt": (
        lambda ids: logits_process.EncoderRepetitionPenaltyLogitsProcessor(4.0, ids),
        {"encoder_repetition_penalty": 4.0},
    ),
    "exponential decay": (
        lambda ids: logits_process.ExponentialDecayLengthPenalty((1, 9.0), 2, ids.shape[1]),
        {"exponential_decay_length_penalty": (1, 9.0)},
    ),
    "suppressed at the beginning": (
        lambda ids: logits_process.SuppressTokensAtBeginLogitsProcessor(list(range(4, 130)), ids.shape[1]),
        {"begin_suppress_tokens": list(range(4, 130))},
    ),
    "a user's own": (lambda ids: Prefer(), {"logits_processor": LogitsProcessorList([Prefer()])}),
}


@kinds
@pytest.mark.parametrize("mode", ["greedy", "static cache", "no cache", "chunked prefill"])
@pytest.mark.parametrize("what", PROCESSORS)
def test_below_all_they_do_what_they_do_by_hand(kind, mode, what):
    """Token by token without a cache, each processor on the unpruned row alone."""
    tested, (make, options) = KINDS[kind], PROCESSORS[what]
    model, batch = tested.model(), tested.inputs(tested.one)
    reference = tested.reference(model, 5)
    (row,) = tested.rows(reference, batch)
    by_hand = make(torch.tensor([row[0]]))
    expected = padded(loop_by_hand(reference, [row], 6, lambda ids, logits: by_hand(ids, logits)))
    with fastervlm.prune(model, 5):
        found = generated(model, batch, **(MODES[mode] | options))
    assert found[:, batch["input_ids"].shape[1] :].tolist() == expected


@kinds
def test_a_criterion_by_length_stops_where_it_says(kind):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    T = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3):
        for options in ({}, {"num_beams": 3}):
            stop = StoppingCriteriaList([StopAfter(T, 3)])
            found = generated(model, batch, max_new_tokens=9, min_new_tokens=3, stopping_criteria=stop, **options)
            assert found.shape[1] == T + 3


@kinds
def test_a_recipe_of_the_users_gets_callbacks_that_see_the_whole_prompt(kind):
    """`custom_generate`: the recipe runs on the pruned prompt, what it is handed to call does not."""
    tested, processor, criterion = KINDS[kind], WatchedProcessor(), WatchedCriterion()
    model, batch = tested.model(), tested.inputs(tested.ragged)
    ids = batch["input_ids"]

    def recipe(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        outputs = model._prefill(input_ids, generation_config, kwargs)
        chosen = logits_processor(input_ids, outputs.logits[:, -1].float()).argmax(dim=-1)
        sequences = torch.cat((input_ids, chosen[:, None]), dim=1)
        assert not stopping_criteria(sequences, None).any()
        assert stopping_criteria.max_length == input_ids.shape[1] + 4
        return sequences

    options = {"logits_processor": LogitsProcessorList([processor]), "stopping_criteria": StoppingCriteriaList([criterion])}
    with fastervlm.prune(model, 3):
        expected = generated(model, batch, max_new_tokens=1)
        found = model.generate(**batch, custom_generate=recipe, max_new_tokens=4, do_sample=False, **options)
    assert torch.equal(found, expected)
    assert [seen.shape[1] - ids.shape[1] for seen in processor.seen + criterion.seen] == [0, 1]
    assert all(torch.equal(seen[:, : ids.shape[1]], ids) for seen in processor.seen + criterion.seen)


def test_processors_of_one_call_are_not_those_of_the_next():
    """A call about text alone, and one after pruning was removed, go by their own prompts."""
    tested, watch = KINDS["llava"], WatchedProcessor()
    model, batch = tested.model(), tested.inputs(tested.one)
    text = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    handle = fastervlm.prune(model, 3)
    generated(model, batch)
    generated(model, text, logits_processor=LogitsProcessorList([watch]))
    handle.remove()
    assert watch.seen[0].tolist() == [[5, 6, 7]]
    assert not {"_get_logits_processor", "_get_stopping_criteria", "_get_candidate_generator"} & set(vars(model))
