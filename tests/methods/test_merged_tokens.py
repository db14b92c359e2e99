"""Tokens that are mixtures, from the tower to the language model, and what methods may look at: features and keys."""

from types import SimpleNamespace

import pytest
import torch

import fastervlm
from encoders import ScoredPatches, UserError, wrap
from fastervlm import METHODS, KeptTokens, VisionZip, prune_patches
from fastervlm.selection.choice import asked, choose, counts_for
from fastervlm.selection.method import traits
from tests.support import literal, plain, plain_next, plain_video, tiny, towers
from tests.support.literal import MERGING, Picture
from tests.support.towers import TOWERS

N, WIDTH = tiny.PATCHES, 32
NEW = [*literal.METHODS, *MERGING]


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


@pytest.fixture(scope="module")
def llava_next():
    return tiny.llava_next()


class Watch:
    """Remembers what goes through a projector, row by row."""

    def __init__(self, model):
        self.rows = torch.zeros(0, WIDTH)
        self.hook = model.model.multi_modal_projector.register_forward_pre_hook(self.see)

    def see(self, module, args):
        self.rows = args[0].flatten(0, -2)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hook.remove()


def by_hand(model, crops):
    """Scores, features, keys and scores of the first block of crops (S, 3, H, W), by hooks on the stock, eager tower."""
    tower, found = model.model.vision_tower, {}
    projection = tower.encoder.layers[-2].self_attn.k_proj
    hook = projection.register_forward_hook(lambda module, args, output: found.update(keys=output[:, 1:]))
    scores = plain.Plain(model, 1).scores(crops)
    states = tower(crops, output_hidden_states=True).hidden_states[-2][:, 1:]
    hook.remove()
    eager = plain.Plain(model, 1).model.model.vision_tower
    early = eager(crops, output_attentions=True).attentions[0][:, :, 0, 1:].mean(1)
    return scores, states, found["keys"].unflatten(-1, (2, -1)).transpose(1, 2), early


def expected_rows(method, scores, states, keys, early, k, grid=(4, 4)):
    """(K, C) of one picture or crop, whose patches are all there are; its first block is a quarter of the three there are."""
    others = {0.25: lambda: early[None, None]}
    parts = scores[None, None], grid, torch.zeros(1), lambda _: states[None], lambda: keys[None]
    patches = ScoredPatches(*parts, other_blocks=others)
    places, rows = MERGING[method](Picture(patches), k)
    return places, literal.mixtures(rows) @ states.double()


def same(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 7, N])
@pytest.mark.parametrize("method", MERGING)
@torch.no_grad()
def test_mixtures_reach_the_projector_of_llava(llava, method, k):
    batch = plain.inputs(plain.PROMPTS["ragged pictures"])
    parts = [expected_rows(method, *part, k) for part in zip(*by_hand(llava, batch["pixel_values"]), strict=True)]
    with fastervlm.prune(llava, k, method=method) as handle, Watch(llava) as watch:
        llava(**batch)
    same(watch.rows, torch.cat([rows for _, rows in parts]))
    assert [trace.index.tolist() for trace in handle.trace] == [places for places, _ in parts]


@pytest.mark.parametrize("size", ["4:3", "1:3", "tower", "square"])
@pytest.mark.parametrize("method", MERGING)
@torch.no_grad()
def test_mixtures_of_crops_know_nothing_of_what_was_unpadded(llava_next, method, size):
    """Each crop is cut to its window; features outside of it may be anything."""
    batch = plain_next.inputs(plain.PROMPTS["one"], [plain_next.SIZES[size]])
    with fastervlm.prune(llava_next, 5, method=method) as handle, Watch(llava_next) as watch:
        llava_next(**batch)
    trace = plain_next.traces(handle)[0]
    parts, masks = [], []
    for part, window in zip(zip(*by_hand(llava_next, batch["pixel_values"][0]), strict=True), trace.cut.windows(), strict=True):
        top, bottom, left, right = window
        inside = torch.arange(N).view(4, 4)[top:bottom, left:right].flatten()
        scores, states, keys, early = part
        own = scores[inside], states[inside], keys[:, inside], early[inside]
        places, rows = expected_rows(method, *own, min(5, len(inside)), (bottom - top, right - left))
        parts.append(rows)
        masks.append(torch.zeros(N, dtype=torch.bool).index_fill(0, inside[places], True))
    same(watch.rows, torch.cat(parts))
    assert torch.equal(trace.mask, torch.stack(masks))


@pytest.mark.parametrize("keep_cls", [False, True])
@pytest.mark.parametrize("method", MERGING)
@torch.no_grad()
def test_mixtures_of_frames(method, keep_cls):
    """Each frame's own, as of a picture that its tower sees alone; [CLS] in front is never mixed."""
    model, batch = tiny.video_llava(), plain_video.inputs(plain_video.PROMPTS["one"])
    tower, frames = model.model.video_tower, batch["pixel_values_videos"].flatten(0, 1)
    rows, kept = prune_patches(tower, frames, 5, method=method)
    if keep_cls:
        first = tower(frames, output_hidden_states=True).hidden_states[-2][:, :1]
        rows = torch.cat((first, rows), dim=1)
    with fastervlm.prune(model, 5, method=method, keep_cls=keep_cls) as handle, Watch(model) as watch:
        model(**batch)
    same(watch.rows, rows.flatten(0, 1).double())
    assert torch.equal(plain_next.traces(handle)[0].mask, kept.mask)


@pytest.mark.parametrize("name", ["hf clip", "open_clip whole model", "timm clip", "eva02"])
@pytest.mark.parametrize("method", NEW)
@torch.no_grad()
def test_any_tower_gives_what_methods_look_at(name, method):
    case = TOWERS[name]
    model, pixel_values = towers.make(case), towers.pixels(case)
    rows, kept = prune_patches(model, pixel_values, 5, method=method)
    told = traits(METHODS[method])
    patches = wrap(model, score=told.score or "cls", also=told.also)(pixel_values)
    for i, found in enumerate(rows):
        picture = Picture(patches, i)
        if method in MERGING:
            places, weights = MERGING[method](picture, 5)
            same(found, literal.mixtures(weights) @ patches.features()[i].double())
        else:
            places = literal.METHODS[method](picture, 5)
            same(found, patches.features()[i][places].double())
        assert kept.index[i].tolist() == places


@pytest.mark.parametrize("name", ["hf clip", "timm clip", "timm deit"])
@torch.no_grad()
def test_keys_are_those_of_the_feature_block(name):
    case = TOWERS[name]
    model, pixel_values, seen = towers.make(case), towers.pixels(case), []
    module = model.encoder.layers[-2].self_attn.k_proj if name == "hf clip" else model.blocks[-2].attn.qkv
    hook = module.register_forward_hook(lambda module, args, output: seen.append(output))
    (model.forward_features if name != "hf clip" else model)(pixel_values)
    hook.remove()
    keys = wrap(model)(pixel_values).keys()
    stock = seen[0] if name == "hf clip" else seen[0].chunk(3, dim=-1)[1]
    prefix = stock.shape[1] - 16
    torch.testing.assert_close(keys.transpose(1, 2).flatten(2), stock[:, prefix:], rtol=1e-5, atol=1e-5)


def test_a_pooling_head_gives_no_keys():
    case = TOWERS["hf siglip"]
    model, pixel_values = towers.make(case), towers.pixels(case)
    with pytest.raises(UserError, match="Patches with this score come without keys; choose a method that needs none"):
        prune_patches(model, pixel_values, 4, method="visionzip", score="pool")
    assert prune_patches(model, pixel_values, 4, method="divprune", score="pool")[1].index.shape[1] == 4


@pytest.mark.parametrize("method", NEW)
@torch.no_grad()
def test_keeping_all_is_the_stock_model(llava, llava_next, method):
    for model, inputs in ((llava, plain.inputs), (llava_next, plain_next.inputs)):
        batch = inputs(plain.PROMPTS["two pictures"])
        stock = model(**batch).logits
        with fastervlm.prune(model, 1.0, method=method):
            assert torch.equal(model(**batch).logits, stock)


@pytest.mark.parametrize("method", NEW)
@torch.no_grad()
def test_answers_of_a_batch_are_those_of_its_rows(llava, llava_next, method):
    for model, inputs in ((llava, plain.inputs), (llava_next, plain_next.inputs)):
        texts = plain.PROMPTS["ragged"]
        batch = inputs(texts)
        with fastervlm.prune(model, 5, method=method):
            together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
            for i in range(len(texts)):
                own = {name: value[i : i + 1] for name, value in batch.items()}
                alone = model.generate(**own, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
                assert alone[0].tolist() == together[i, : alone.shape[1]].tolist()


class Mixing:
    """Keeps the first tokens, each twice its patch and once the last one."""

    def __call__(self, patches, k):
        index = torch.arange(k).expand(len(patches.scores), -1)
        weights = 2 * torch.eye(patches.scores.shape[1])[index]
        weights[:, :, -1] += 1
        return KeptTokens(index, patches.scores.shape[1], weights=weights)


def some_patches(batch=4, count=6):
    random = torch.Generator().manual_seed(0)
    features, attention = torch.randn(batch, count, 3, generator=random), torch.rand(batch, 2, count, generator=random)
    calls = []

    def finish(index, cls=False):
        calls.append((index is None, cls))
        rows = features if index is None else features.gather(1, index[:, :, None].expand(-1, -1, 3))
        return torch.cat((torch.full((batch, 1, 3), 9.0), rows), dim=1) if cls else rows

    patches = ScoredPatches(attention, (2, count // 2), torch.arange(batch), finish, lambda: features[:, None])
    return SimpleNamespace(patches=patches, features=features, calls=calls)


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("counts", [[2, 2, 2, 2], [3, 1, 3, 2], [6, 6, 6, 6], [6, 0, 1, 6]])
def test_rows_of_unequal_numbers(counts, cls):
    """Plain and mixed rows stand one after the other, [CLS] in front of each, and each patch knows its row."""
    for method in (
        METHODS["divprune"],
        Mixing(),
        lambda patches, k: Mixing()(patches, k) if k < 3 else METHODS["cls"](patches, k),
    ):
        case = some_patches()
        choice = choose(case.patches, counts, method)
        table, number = choice.project(lambda rows: rows + 1, cls=cls)
        expected, first = [], 0
        for i, count in enumerate(counts):
            kept = method(some_patches().patches, count) if count else None
            rows = kept.rows(some_patches().patches)[i] if kept else torch.zeros(0, 3)
            expected.append(torch.cat((torch.full((int(cls), 3), 9.0), rows)))
            index = kept.index[i].tolist() if kept else []
            assert choice.mask[i].nonzero().flatten().tolist() == index
            assert choice.index[i, :count].tolist() == index
            assert number[i, index].tolist() == list(range(first + cls, first + cls + count))
            first += count + cls
        torch.testing.assert_close(table, torch.cat(expected) + 1)
        assert choice.counts == counts


def test_features_are_computed_once():
    case = some_patches()
    choose(case.patches, [2] * 4, METHODS["divprune"]).project(lambda rows: rows)
    assert case.calls == [(True, False)]
    case = some_patches()
    choose(case.patches, [2, 3, 2, 1], METHODS["vispruner"]).project(lambda rows: rows)
    assert case.calls == [(True, False)]
    case = some_patches()
    choose(case.patches, [2] * 4, METHODS["cls"]).project(lambda rows: rows)
    assert case.calls == [(False, False)]


def test_a_method_sees_its_window_and_its_rows_alone():
    case, seen = some_patches(), []

    def method(patches, k):
        seen.append(patches)
        return METHODS["cls"](patches, k)

    windows = [(0, 2, 0, 3), (0, 2, 1, 3), (1, 2, 0, 2), (0, 2, 1, 3)]
    asking = asked(case.patches, ["a", "b"], [1, 3])
    choose(
        asking, counts_for(fastervlm.TokenBudget(3), case.patches.scores, grid=(2, 3), windows=windows), method, windows=windows
    )
    assert [part.grid for part in seen] == [(2, 3), (2, 2), (1, 2)]
    assert [part.questions for part in seen] == [("a",), ("b", "b"), ("b",)]
    inside = [1, 2, 4, 5]
    assert torch.equal(seen[1].features(), case.features[[1, 3]][:, inside])
    assert torch.equal(seen[1].features(torch.tensor([[3], [0]])), case.features[[1, 3], [5, 1]][:, None])
    assert torch.equal(seen[1].features(cls=True)[:, 1:], case.features[[1, 3]][:, inside])
    assert torch.equal(seen[1].keys()[:, 0], case.features[[1, 3]][:, inside])
    assert torch.equal(seen[1].scores, case.patches.scores[[1, 3]][:, inside])


@pytest.mark.parametrize(
    "weights", [torch.ones(2, 3), torch.ones(2, 2, 5), torch.ones(1, 2, 6), torch.ones(2, 2, 6, dtype=torch.long)]
)
def test_weights_of_another_shape_are_refused(weights):
    def method(patches, k):
        return KeptTokens(torch.tensor([[0, 1]] * 2), 6, weights=weights)

    with pytest.raises(UserError, match=r"floating-point weights of shape \(2, 2, 6\), a row for each token\."):
        choose(some_patches(2).patches, [2, 2], method)


def test_questions_that_do_not_fit():
    for questions in ("What?", ["What?"], ["a", "b", "c", 4]):
        with pytest.raises(
            UserError, match="questions must be a list of texts, one for each of the 4 pictures of pixel_values"
        ):
            asked(some_patches().patches, questions)
    assert asked(some_patches().patches, None).questions is None


def test_a_count_of_contextual_tokens_above_the_budget():
    kept = VisionZip(50)(some_patches().patches, 3)
    assert kept.index.tolist() == [[0, 2, 4]] * 4
