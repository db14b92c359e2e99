"""Patches that leave inside the tower: against blocks computed one by one with whole attention maps."""

from typing import Any

import pytest
import torch

import fastervlm
from encoders import wrap
from fastervlm import ClsAttention, EncoderSchedule, FastV, Mass, UserError, UserTypeError
from tests.support import plain, tiny, towers
from tests.support.checks import close, one_sentence
from tests.support.plain import PROMPTS, Plain
from tests.support.towers import TOWERS

N = tiny.PATCHES


def prune(*arguments, **settings) -> Any:
    return fastervlm.prune(*arguments, **settings)


@pytest.fixture
def model():
    """Features are taken from the third block, so that patches can leave in two."""
    return tiny.llava(vision_feature_layer=-1)


class Thinned(Plain):
    """Pruned by hand, in the tower too: in a block of `leave` all rows are computed, and then some are thrown away."""

    def __init__(self, model, keep, leave):
        super().__init__(model, keep, layer=-1)
        self.leave = leave

    def scores(self, pixel_values):
        """(B, N), below zero where a patch has left."""
        return self._run(pixel_values)[0]

    def projected(self, pixel_values):
        """(B, N, D), nothing where a patch has left."""
        return self.model.model.multi_modal_projector(self._run(pixel_values)[1])

    def _run(self, pixel_values):
        found = [self._one(picture[None]) for picture in pixel_values]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _one(self, picture):
        tower = self.model.model.vision_tower
        hidden, places = tower.pre_layrnorm(tower.embeddings(picture))[0], list(range(N))
        row = torch.empty(0)
        for number, block in enumerate(tower.encoder.layers, start=1):
            row, hidden = self._block(block, hidden)
            if number in self.leave:
                order = sorted(range(len(places)), key=lambda i, row=row: -float(row[i]))
                stay = sorted(order[: self.leave[number]])
                hidden, places = hidden[[0, *(1 + i for i in stay)]], [places[i] for i in stay]
        scores, features = torch.full((N,), -1.0), torch.zeros(N, hidden.shape[1])
        scores[places], features[places] = row, hidden[1:]
        return scores, features

    @staticmethod
    def _block(block, hidden):
        """The attention of [CLS] to the patches, a mean over heads, and the block's output."""
        own, normed = block.self_attn, block.layer_norm1(hidden)
        query, key, value = (
            part(normed).unflatten(1, (own.num_heads, -1)).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        attention = (query @ key.mT * own.scale).softmax(dim=-1)
        hidden = hidden + own.out_proj((attention @ value).transpose(0, 1).flatten(1))
        return attention[:, 0, 1:].mean(dim=0), hidden + block.mlp(block.layer_norm2(hidden))


SCHEDULES = [
    (EncoderSchedule([1], [8]), {1: 8}),
    (EncoderSchedule([2], [0.5]), {2: 8}),
    (EncoderSchedule((1, 2), (0.75, 6)), {1: 12, 2: 6}),
    (EncoderSchedule([1, 2], [9, 2]), {1: 9, 2: 5}),
    (EncoderSchedule([1, 2], [20, 7]), {2: 7}),
]


@pytest.mark.parametrize(("schedule", "leave"), SCHEDULES)
@pytest.mark.parametrize("texts", ["one", "ragged pictures"])
@torch.no_grad()
def test_answers_are_those_of_a_tower_thinned_by_hand(model, texts, schedule, leave):
    batch, reference = plain.inputs(PROMPTS[texts]), Thinned(model, 5, leave)
    expected = [reference.logits(*row) for row in plain.rows(batch)]
    scores, index = reference.scores(batch["pixel_values"]), reference.index(batch["pixel_values"])
    whole = Plain(model, 5, layer=-1).index(batch["pixel_values"])
    with prune(model, 5, encoder_keep=schedule) as handle:
        logits = model(**batch).logits
        for ours, theirs in zip(logits, expected, strict=True):
            close(ours[-len(theirs) :], theirs)
        for trace, marks, kept in zip(handle.trace, scores, index, strict=True):
            assert torch.equal(trace.index, kept)
            torch.testing.assert_close(trace.scores, marks.clamp(min=0), rtol=1e-5, atol=1e-6)
            assert trace.grid == (4, 4)
        tokens = model.generate(**plain.inputs(PROMPTS["one"]), max_new_tokens=3, do_sample=False)
        alone = next(plain.rows(plain.inputs(PROMPTS["one"])))
        assert tokens[0, -3:].tolist() == reference.greedy(*alone, 3)
    if leave.get(2) == 5:
        assert not torch.equal(whole, index)


@pytest.mark.parametrize("keep", [N, 1.0, 99])
@torch.no_grad()
def test_where_all_is_kept_nothing_leaves(model, keep):
    batch = plain.inputs(PROMPTS["ragged pictures"])
    stock = model(**batch).logits
    with prune(model, keep, encoder_keep=EncoderSchedule([1, 2], [8, 1])):
        assert torch.equal(model(**batch).logits, stock)


@torch.no_grad()
def test_a_schedule_that_keeps_all_is_no_schedule(model):
    batch = plain.inputs(PROMPTS["ragged pictures"])
    with prune(model, 5):
        expected = model(**batch).logits
    with prune(model, 5, encoder_keep=EncoderSchedule([1, 2], [1.0, N])) as handle:
        assert torch.equal(model(**batch).logits, expected)
        assert handle.pruning.encoder_keep == EncoderSchedule((1, 2), (1.0, N))


@torch.no_grad()
def test_blocks_behind_see_fewer_tokens(model):
    seen = []
    for block in model.model.vision_tower.encoder.layers:
        block.layer_norm2.register_forward_hook(lambda *of: seen.append(of[2].shape[1]))
    with prune(model, 3, encoder_keep=EncoderSchedule([1, 2], [9, 4])):
        model(**plain.inputs(PROMPTS["one"]))
    assert seen == [1 + 9, 1 + 4, 3]


@torch.no_grad()
def test_half_precision_and_one_graph(model):
    batch, graphs = plain.inputs(PROMPTS["two pictures"]), []
    schedule = EncoderSchedule([1, 2], [9, 7])
    torch._dynamo.reset()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with prune(model, 5, encoder_keep=schedule) as handle:
        exact = model(**batch).logits
        handle.compile(backend=backend)
        assert torch.equal(model(**batch).logits, exact)
        assert torch.equal(model(**batch).logits, exact)
    assert len(graphs) == 1
    with prune(model.to(torch.bfloat16), 5, encoder_keep=schedule):
        assert model(**batch).logits.isfinite().all()


@torch.no_grad()
def test_what_has_left_has_neither_features_nor_keys(model):
    encoder: Any = wrap(model.model.vision_tower, select_layer=-1)
    pictures = plain.inputs(PROMPTS["one"])["pixel_values"]
    patches = encoder.thinned(pictures, lambda count: {1: count // 2})
    assert patches.cls_attention.shape == encoder(pictures).cls_attention.shape
    assert ((patches.scores < 0).sum(dim=1) == N // 2).all()
    with pytest.raises(UserError, match="have no features"):
        patches.features()
    with pytest.raises(UserError, match="without keys"):
        patches.keys()


REFUSED: list[tuple[Any, dict[str, Any], type, str]] = [
    (tiny.llava_next, {}, UserError, "for a LLaVA-1.5 pruned"),
    (tiny.video_llava, {}, UserError, "for a LLaVA-1.5 pruned"),
    *((tiny.llava, {"method": method}, UserError, "method='cls'") for method in ("vispruner", "random", FastV())),
    (tiny.llava, {"method": ClsAttention(lowest=True)}, UserError, "method='cls'"),
    (tiny.llava, {"keep": Mass(0.9)}, UserError, "count or fraction"),
    (tiny.llava, {"encoder_keep": EncoderSchedule([2], [8])}, UserError, "in block 2, because features are taken from block 2"),
    (tiny.llava, {"encoder_keep": 0.5}, UserTypeError, "is no EncoderSchedule"),
    (lambda: tiny.llava(vision_feature_layer=[-2, -1]), {}, UserError, "one layer of features"),
]


@pytest.mark.parametrize(("make", "settings", "kind", "sentence"), REFUSED)
def test_where_it_is_not_possible_it_is_refused(make, settings, kind, sentence):
    model = make()
    before = dict(vars(model))
    with pytest.raises(kind, match=sentence) as caught:
        prune(model, **({"keep": 5, "encoder_keep": EncoderSchedule([1], [8])} | settings))
    one_sentence(caught.value)
    assert dict(vars(model)) == before


def test_a_layer_of_the_call_counts(model):
    with prune(model, 5, encoder_keep=EncoderSchedule([2], [8])), pytest.raises(UserError, match="cannot leave in block 2"):
        model(**plain.inputs(PROMPTS["one"]), vision_feature_layer=-2)


@pytest.mark.parametrize("name", ["hf siglip", "open_clip", "timm registers", "eva02", "languagebind of pictures"])
def test_other_towers_are_refused(name):
    case = TOWERS[name]
    encoder: Any = wrap(towers.make(case), score=case.score)
    with pytest.raises(UserError, match="only inside a CLIP tower of transformers") as caught:
        encoder.check_thinning([1])
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("blocks", "keep", "kind", "sentence"),
    [
        ([], [], UserError, "do not fit together"),
        ([1, 2], [8], UserError, "do not fit together"),
        ([0], [8], UserTypeError, "counted from 1"),
        ([1.5], [8], UserTypeError, "whole numbers"),
        ([2, 1], [8, 4], UserError, "must rise"),
        ([1, 1], [8, 4], UserError, "must rise"),
        ([1, 2], [4, 8], UserError, "must not rise"),
        ([1, 2], [0.25, 0.5], UserError, "must not rise"),
        ([1], [0], UserError, "keep=0 would leave no visual token"),
        ([1], ["8"], UserTypeError, "is no number"),
        (1, [8], UserTypeError, "blocks=1 must be a list"),
        ([1], 8, UserTypeError, "keep=8 must be a list"),
        ("1", "8", UserTypeError, "must be a list"),
    ],
)
def test_numbers_that_do_not_fit(blocks, keep, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        EncoderSchedule(blocks, keep)
    one_sentence(caught.value)


def test_counts():
    assert EncoderSchedule([8, 16], [288, 144]).counts(576, 58) == {8: 288, 16: 144}
    assert EncoderSchedule([8, 16], [0.5, 0.25]).counts(576, 200) == {8: 288, 16: 200}
    assert EncoderSchedule([8, 16], [0.5, 500]).counts(576, 1) == {8: 288, 16: 288}
