"""Methods inside the language model on every family: hosts by their decoder, the others refused."""

import copy
from functools import cache

import pytest
import torch

import fastervlm
from encoders import UserTypeError
from fastervlm import FastV, Simignore
from fastervlm.inllm.handle import DECODERS
from tests.support.checks import close
from tests.support.family_cases import CASES, IMAGE_ID, ROWS, START_ID, STOP_ID, VIDEO_ID, prompt, random
from tests.support.plain_decoder import PlainDecoder, Stage, by_walk

NEVER = [IMAGE_ID, VIDEO_ID, START_ID, STOP_ID]
GREEDY = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": NEVER}
METHODS = {
    "fastv": (FastV(1), lambda keep: Stage(1, keep)),
    "fastv, masked": (FastV(1, "mask"), lambda keep: Stage(1, keep, "mask")),
    "simignore": (Simignore("drop"), lambda keep: Stage(0, keep, "drop", by_walk(1, 1))),
}
each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def models():
    return cache(lambda name: random(CASES[name].make))


def is_host(model):
    return bool({cls.__name__ for cls in type(model.model.language_model).__mro__} & set(DECODERS))


class Embedded(PlainDecoder):
    """By hand from the stock model's own embeddings on; `pictures` are all inputs of the row."""

    visual_ids = (IMAGE_ID, VIDEO_ID)

    def embeds(self, ids, pictures):
        seen = []
        decoder = self.model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda _, args, told: seen.append(told["inputs_embeds"][0]), with_kwargs=True)
        self.model(**pictures)
        hook.remove()
        more = torch.tensor(ids[len(seen[0]) :], dtype=torch.long)
        return torch.cat((seen[0], self.model.get_input_embeddings()(more)))


@each_case
@torch.no_grad()
def test_a_decoder_that_is_not_known_is_refused(models, name):
    model = models(name)
    if is_host(model):
        with fastervlm.prune(model, 1.0, method=FastV(1)):
            return
    with pytest.raises(UserTypeError, match="cannot be pruned inside; supported language models are"):
        fastervlm.prune(model, 0.5, method=FastV(1))


@each_case
@torch.no_grad()
def test_keeping_all_is_the_stock_model_to_the_bit(models, name):
    case, model = CASES[name], models(name)
    if not is_host(model):
        return
    batch = prompt(case, model, ROWS["ragged"])
    logits, sequences = model(**batch).logits, model.generate(**batch, **GREEDY)
    for method, _ in METHODS.values():
        with fastervlm.prune(model, 1.0, method=method):
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(model.generate(**batch, **GREEDY), sequences)


@each_case
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_fewer_are_the_plain_way(models, name, method):
    """Rows of one, two and no pictures against each layer by hand, one row at a time."""
    case, model = CASES[name], models(name)
    if not is_host(model):
        return
    keep, rows = 5, ROWS["ragged"]
    chosen, stage = METHODS[method]
    batch = prompt(case, model, rows)
    with fastervlm.prune(model, keep, method=chosen) as handle:
        logits = model(**batch).logits
        trace = handle.trace
        sequences = model.generate(**batch, **(GREEDY | {"max_new_tokens": 2}))[:, batch["input_ids"].shape[1] :]
    plain = Embedded(copy.deepcopy(model), stage(keep))
    for number, seeds in enumerate(rows):
        single = prompt(case, model, [seeds], first=number)
        ids = single["input_ids"][0].tolist()
        columns = batch["attention_mask"][number].nonzero().flatten().tolist()
        expected = plain.logits(ids, single if seeds else {"input_ids": single["input_ids"]})
        for column, value in expected.items():
            if column not in plain.masked:
                close(logits[number, columns[column]], value)
        if seeds:
            visual = [i for i, token in enumerate(ids) if token in plain.visual_ids]
            assert [visual[i] for i in trace[number].index.tolist()] == plain.kept[chosen.layer]
            assert len(plain.kept[chosen.layer]) < len(visual)
        last = expected[len(ids) - 1].clone()
        last[NEVER] = -torch.inf
        assert int(sequences[number, 0]) == int(last.argmax())
