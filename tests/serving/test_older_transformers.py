"""The transformers that vLLM lets us have, the lower end of what we take: what it does right, and what is refused by name."""

import copy

import pytest
import torch

import fastervlm
from encoders import UserError
from fastervlm.generation.versions import is_older
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.generation_modes import GREEDY
from tests.support.model_kinds import KINDS
from tests.support.plain import PROMPTS, Plain

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "drafts"), [(5, 3), (3, 9), (5, None)])
def test_a_draft_changes_no_answer(kind, keep, drafts):
    model, batch = KINDS[kind].model(), KINDS[kind].inputs(KINDS[kind].one)
    draft, long = copy.deepcopy(model), GREEDY | {"max_new_tokens": 14, "min_new_tokens": 14}
    draft.generation_config.num_assistant_tokens = 4
    fastervlm.prune(model, keep)
    if drafts is not None:
        fastervlm.prune(draft, drafts)
    assert torch.equal(model.generate(**batch, **long, assistant_model=draft), model.generate(**batch, **long))


@pytest.mark.parametrize("prompts", ["ragged", "ragged pictures"])
def test_several_answers_are_those_of_the_loop_by_hand_or_refused(prompts):
    model = tiny.llava()
    batch, reference = plain.inputs(PROMPTS[prompts]), Plain(model, 5)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": 4}
    told = {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    with fastervlm.prune(model, 5):
        if prompts == "ragged pictures" and is_older("5.19"):
            with pytest.raises(UserError, match=r"cannot search with beams, or give several answers, .* as 5\.19"):
                model.generate(**batch, **options)
            return
        output = model.generate(**batch, **options, **told)
    new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
    for row, (ids, pixels) in enumerate(plain.rows(batch)):
        for answer in (2 * row, 2 * row + 1):
            for step, logits in enumerate(output.logits):
                if plain.END_ID not in new[answer][:step]:
                    close(logits[answer], reference.logits(ids + new[answer][:step], pixels)[-1])


def test_reading_in_chunks_is_refused_or_right():
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    with fastervlm.prune(model, 5):
        if is_older("5.23"):
            with pytest.raises(UserError, match=r"cannot read a prompt with pictures in chunks .* 5\.23"):
                model.generate(**batch, **GREEDY, prefill_chunk_size=4)
        else:
            found = model.generate(**batch, **GREEDY, prefill_chunk_size=4)
            assert torch.equal(found, model.generate(**batch, **GREEDY))
