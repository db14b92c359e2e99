"""`generate` of a pruned model in every mode: against a greedy loop by hand, rows alone, and the stock model at K = N."""

import pytest
import torch

import fastervlm
from fastervlm import KeptTokens
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, MODES, SAMPLES, padded, tokens
from tests.support.plain import PROMPTS, Plain

N = tiny.PATCHES


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(("keep", "positions"), [(1, "compact"), (5, "compact"), (5, "original"), (15, "original")])
def test_greedy_is_the_loop_by_hand(model, texts, keep, positions, mode):
    batch, reference = plain.inputs(texts), Plain(model, keep, positions=positions)
    expected = padded([reference.greedy(*row, 6) for row in plain.rows(batch)])
    with fastervlm.prune(model, keep, positions=positions):
        found = tokens(model.generate(**batch, **(GREEDY | mode)))
    length = batch["input_ids"].shape[1]
    assert torch.equal(found[:, :length], batch["input_ids"])
    assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("seed", range(4))
def test_prompt_lookup_is_the_loop_by_hand(mode, positions, seed):
    model = tiny.llava(seed)
    batch, reference = plain.inputs(PROMPTS["one"]), Plain(model, 5, positions=positions)
    options = GREEDY | mode
    expected = reference.greedy(*next(plain.rows(batch)), options["max_new_tokens"])
    with fastervlm.prune(model, 5, positions=positions):
        found = model.generate(**batch, **options)
    assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", (BEAMS | MODES).values(), ids=BEAMS | MODES)
def test_rows_in_a_batch_are_rows_alone(model, mode):
    options = GREEDY | mode
    answers = options.get("num_return_sequences", 1)
    for texts in PROMPTS.values():
        batch = plain.inputs(texts)
        length, first = batch["input_ids"].shape[1], 0
        with fastervlm.prune(model, 5):
            together = tokens(model.generate(**batch, **options))
            for i, text in enumerate(texts):
                alone = {"input_ids": batch["input_ids"][i : i + 1, -int(batch["attention_mask"][i].sum()) :]}
                if "<image>" in text:
                    alone["pixel_values"] = batch["pixel_values"][first : first + text.count("<image>")]
                    first += text.count("<image>")
                found = tokens(model.generate(**alone, **options))[:, alone["input_ids"].shape[1] :]
                ours = together[i * answers : (i + 1) * answers, length:]
                assert torch.equal(ours[:, : found.shape[1]], found)
                assert not ours[:, found.shape[1] :].any()


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES | MODES).values(), ids=BEAMS | SAMPLES | MODES)
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_keeping_all_gives_the_stock_answers(model, texts, mode, positions):
    batch, options = plain.inputs(texts), GREEDY | mode
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    with fastervlm.prune(model, N, positions=positions):
        torch.manual_seed(3)
        assert torch.equal(tokens(model.generate(**batch, **options)), stock)


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
def test_keeping_all_gives_the_stock_answers_by_prompt_lookup(model, mode):
    batch, options = plain.inputs(PROMPTS["two pictures"]), GREEDY | mode
    stock = model.generate(**batch, **options)
    with fastervlm.prune(model, N):
        assert torch.equal(model.generate(**batch, **options), stock)


def test_sampling_draws_from_the_pruned_distribution(model):
    """Several answers of one row: each step's scores are those of the loop by hand for the answer so far."""
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": 5}
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    length = batch["input_ids"].shape[1]
    new = output.sequences[:, length:].tolist()
    assert len({tuple(row) for row in new}) > 8
    for row, (ids, pixels) in enumerate(plain.rows(batch)):
        for answer in range(4 * row, 4 * row + 4):
            for step, logits in enumerate(output.logits):
                if plain.END_ID not in new[answer][:step]:
                    close(logits[answer], reference.logits(ids + new[answer][:step], pixels)[-1])


def test_beam_scores_are_those_of_the_loop_by_hand(model):
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5)
    with fastervlm.prune(model, 5):
        output = model.generate(
            **batch, **GREEDY, num_beams=4, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
        )
    length = batch["input_ids"].shape[1]
    for new, score, (ids, pixels) in zip(
        output.sequences[:, length:].tolist(), output.sequences_scores, plain.rows(batch), strict=True
    ):
        new = new[: new.index(plain.END_ID) + 1] if plain.END_ID in new else new
        logits = reference.logits(ids + new, pixels)[-len(new) - 1 : -1].log_softmax(-1)
        close(score, logits[range(len(new)), new].sum())


def test_no_graph_is_kept(model):
    """A method sees scores without gradients in `generate`, as all of the model's own generation does."""
    seen = []

    def method(patches, k):
        seen.append(patches.scores.requires_grad)
        return KeptTokens.top(patches.scores, k)

    with fastervlm.prune(model, 5, method=method):
        model.generate(**plain.inputs(PROMPTS["one"]), **GREEDY)
        model(**plain.inputs(PROMPTS["one"]))
    assert seen == [False, True]
