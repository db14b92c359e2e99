"""The fine-tuning example: a pruned model trains through both loops, alike, and only what is to learn changes."""

import copy

import pytest
import torch

import fastervlm
from playground import finetune
from playground.finetune import LOOPS, Scenes, collate

KEEP, STEPS, BATCH, RATE = 12, 5, 6, 1e-3


@pytest.fixture(scope="module")
def tiny():
    return fastervlm.load(finetune.MODEL, dtype="float32", device="cpu")


def test_labels_are_the_answer_and_the_end(tiny):
    _, processor = tiny
    examples = [Scenes(9)[i] for i in range(9)]
    batch, answers = collate(processor)(examples), [answer for _, _, answer in examples]
    assert len({len(prompt) for _, prompt, _ in examples}) > 1  # rows are padded
    told = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert told == [f" {answer}</s>" for answer in answers]
    learned = batch["labels"] != -100
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    last = batch["attention_mask"].sum(dim=1) - 1
    assert learned[torch.arange(9), last].all()
    assert int(learned.sum()) == 2 * 9


@pytest.fixture(scope="module")
def tuned(tiny):
    """By loop: the losses, the model afterwards, and how long the prompts were that its language model read."""
    found = {}
    for loop in LOOPS:
        model, read = copy.deepcopy(tiny[0]), set()
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs, read=read: read.add(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        losses = finetune.tune(model, tiny[1], loop, KEEP, STEPS, BATCH, RATE)
        hook.remove()
        found[loop] = losses, model, read
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loss_falls_and_the_model_was_pruned(tiny, tuned, loop):
    model, processor = tiny
    losses, after, read = tuned[loop]
    assert len(losses) == STEPS
    assert max(read) < KEEP + 64  # of 576
    batch = collate(processor)([Scenes(STEPS * BATCH)[i] for i in range(STEPS * BATCH)])
    with torch.no_grad(), fastervlm.prune(model, KEEP), fastervlm.prune(after, KEEP):
        assert after(**batch).loss < 0.9 * model(**batch).loss
    assert not after.training


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_reach_projector_and_language_model_and_the_tower_stays(tiny, tuned, loop):
    before, after = tiny[0].state_dict(), tuned[loop][1].state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) is name.startswith("model.vision_tower"), name


def test_both_loops_do_the_same(tuned):
    plain, trainer = (tuned[loop][0] for loop in ("plain", "trainer"))
    assert plain == pytest.approx(trainer, rel=1e-3)
