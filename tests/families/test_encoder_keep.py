"""Patches that leave inside the tower: against blocks computed one by one with whole attention maps."""

from typing import Any

import pytest
import torch

import fastervlm
from encoders import wrap
from encoders.thinning import Survivors
from fastervlm import ClsAttention, EncoderSchedule, FastV, Mass, UserError, UserTypeError
from tests.support import plain, plain_video, tiny, towers
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
    (tiny.llava_next, {"budget": "image"}, UserError, "more tokens than encoder_keep leaves"),
    (tiny.video_llava, {"budget": "clip"}, UserError, "more tokens than encoder_keep leaves"),
    (tiny.llava_next, {"method": "vispruner"}, UserError, "method='cls'"),
    (tiny.video_llava, {"keep": Mass(0.9)}, UserError, "count or fraction"),
    *((tiny.llava, {"method": method}, UserError, "method='cls'") for method in ("vispruner", "random", FastV())),
    (tiny.llava, {"method": ClsAttention(lowest=True)}, UserError, "method='cls'"),
    (tiny.llava, {"keep": Mass(0.9)}, UserError, "count or fraction"),
    (tiny.llava, {"encoder_keep": EncoderSchedule([2], [8])}, UserError, "in block 2, because features are taken from block 2"),
    (tiny.llava_next, {"encoder_keep": EncoderSchedule(still=0.1)}, UserError, "is for frames of a clip"),
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


@pytest.mark.parametrize("name", ["hf siglip", "timm siglip", "eva02", "languagebind of pictures"])
def test_other_towers_are_refused(name):
    case = TOWERS[name]
    encoder: Any = wrap(towers.make(case), score=case.score)
    with pytest.raises(UserError, match=r"a \[CLS\] token and without rotary positions") as caught:
        encoder.check_thinning([1])
    one_sentence(caught.value)


THINNED = ["hf clip", "open_clip", "open_clip own attention", "timm clip", "timm registers", "timm deit", "timm post-norm"]


@pytest.mark.parametrize("name", THINNED)
@torch.no_grad()
def test_towers_of_all_libraries_against_whole_blocks_whose_rows_are_thrown_away(name):
    case = TOWERS[name]
    tower, pictures, left = towers.make(case), towers.pixels(case), 7
    encoder: Any = wrap(tower, select_layer=-1)
    prefix, found = encoder.prefix, wrap(tower, select_layer=1)(pictures)
    stay = found.scores.argsort(dim=1, descending=True)[:, :left].sort(dim=1).values
    hidden = encoder._embed(pictures, False)[0]
    for number, block in enumerate(encoder.blocks, start=1):
        hidden = encoder._run(block, hidden, None)
        if number == 1:
            rows = torch.cat([torch.arange(prefix).expand(len(stay), -1), prefix + stay], dim=1)
            hidden = torch.stack([row[index] for row, index in zip(hidden, rows, strict=True)])
    thinned = encoder.thinned(pictures, lambda count: {1: left})
    assert torch.equal((thinned.scores >= 0).nonzero()[:, 1].view(len(stay), -1), stay)
    close(thinned.features(stay), hidden[:, prefix:])
    kept, told = fastervlm.prune_patches(tower, pictures, 3, select_layer=-1, encoder_keep=EncoderSchedule([1], [left]))
    assert torch.equal(told.index, thinned.scores.topk(3).indices.sort(dim=1).values)
    close(kept, thinned.features(told.index))


@pytest.mark.parametrize("name", ["hf clip", "open_clip", "timm registers", "timm wide", "timm padded"])
@torch.no_grad()
def test_what_enters_are_the_patches_whose_pixels_vary_most_and_they_see_no_others(name):
    case = TOWERS[name]
    tower, pictures, left = towers.make(case), towers.pixels(case) * torch.rand(case.size), 4
    encoder: Any = wrap(tower, select_layer=-1)
    (high, wide), (rows, columns), prefix = encoder.patch_size, case.grid, encoder.prefix
    found = encoder.thinned(pictures, lambda count: {0: left})
    for number, picture in enumerate(pictures):
        whole = torch.zeros(3, rows * high, columns * wide)
        whole[:, : case.size[0], : case.size[1]] = picture
        places = [(row * high, column * wide) for row in range(rows) for column in range(columns)]
        varied = [float(whole[:, y : y + high, x : x + wide].flatten(1).std(dim=1, correction=0).sum()) for y, x in places]
        index = sorted(sorted(range(len(places)), key=lambda i, varied=varied: -varied[i])[:left])
        assert (found.scores[number] >= 0).nonzero()[:, 0].tolist() == index
        hidden = encoder._embed(picture[None], False)[0][:, [*range(prefix), *(prefix + i for i in index)]]
        for block in encoder.blocks:
            hidden = encoder._run(block, hidden, None)
        close(found.features(torch.tensor([index] * len(pictures)))[number], hidden[0, prefix:])


@torch.no_grad()
def test_a_schedule_that_begins_in_front_of_the_first_block(model):
    seen = []
    for block in model.model.vision_tower.encoder.layers:
        block.layer_norm2.register_forward_hook(lambda *of: seen.append(of[2].shape[1]))
    with prune(model, 3, encoder_keep=EncoderSchedule([0, 2], [0.5, 4])):
        model(**plain.inputs(PROMPTS["one"]))
    assert seen == [1 + 8, 1 + 4, 3]


def next_inputs():
    sizes = [(40, 60), (90, 30)]  # crops that are partly padding
    pictures = [tiny.picture(seed).resize(size) for seed, size in enumerate(sizes)]
    return dict(tiny.next_processor()(images=pictures, text=["<image> and <image>?"], return_tensors="pt"))


class Crops(Thinned):
    """Crops one by one, from which what is not in a window leaves first."""

    def kept(self, crop, window, left):
        top, bottom, near, far = window
        inside = [4 * row + column for row in range(top, bottom) for column in range(near, far)]
        tower = self.model.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(crop[None]))[0]
        row, hidden = self._block(tower.encoder.layers[0], hidden)
        order = sorted(range(N), key=lambda i: (i not in inside, -float(row[i])))
        places = sorted(order[:left])
        hidden = hidden[[0, *(1 + i for i in places)]]
        for block in tower.encoder.layers[1:]:
            row, hidden = self._block(block, hidden)
        marks = {place: float(mark) for place, mark in zip(places, row, strict=True) if place in inside}
        return sorted(sorted(marks, key=lambda place: -marks[place])[:5])


@torch.no_grad()
def test_crops_whose_padding_leaves_first():
    model, batch = tiny.llava_next(vision_feature_layer=-1), next_inputs()
    reference, left = Crops(model, 5, {1: 7}), 7
    with prune(model, 5) as handle:
        exact = model(**batch).logits
        before = [trace.mask for trace in handle.trace]
    with prune(model, 5, encoder_keep=EncoderSchedule([1], [1.0])):
        assert torch.equal(model(**batch).logits, exact)
    with prune(model, 5, encoder_keep=EncoderSchedule([1], [left])) as handle:
        assert model(**batch).logits.isfinite().all()
    for trace, pixels in zip(handle.trace, batch["pixel_values"], strict=True):
        for crop, mask, window in zip(pixels, trace.mask, trace.cut.windows(), strict=False):
            assert mask.nonzero()[:, 0].tolist() == reference.kept(crop, window, left)
        assert trace.scores.min() >= 0
    assert any(not torch.equal(one, trace.mask) for one, trace in zip(before, handle.trace, strict=True))


@pytest.mark.parametrize("keep_cls", [False, True])
@torch.no_grad()
def test_frames_that_say_nothing_new_are_not_encoded(keep_cls):
    model, batch = tiny.video_llava(vision_feature_layer=-1), plain_video.inputs(plain_video.PROMPTS["mixed"])
    videos = batch["pixel_values_videos"]
    frames, seen = videos.shape[1], []
    videos[0, 1:] = videos[0, :1]  # one frame again and again
    if len(videos) > 1:
        videos[1, 1] = videos[1, 0]
        videos[1, 1, 0, 3, 3] += 64.0  # a pixel of one patch by 64, which is 1 in the mean over 64, a third over the channels
    model.model.video_tower.encoder.layers[0].register_forward_hook(lambda *of: seen.append(len(of[2])))
    with prune(model, 5, keep_cls=keep_cls):
        exact = model(**dict(batch)).logits
    whole = seen.copy()
    assert sum(whole) == len(videos) * frames
    for still, second in ((0.0, 1), (0.3, 1), (0.4, 0)):
        seen.clear()
        with prune(model, 5, keep_cls=keep_cls, encoder_keep=EncoderSchedule(still=still)) as handle:
            close(model(**dict(batch)).logits, exact) if second else model(**dict(batch))
        clips: list[Any] = [trace for trace in handle.trace if isinstance(trace, fastervlm.ClipTrace)]
        assert clips[0].shown.tolist() == [0] * frames
        assert [trace.shown[1].item() for trace in clips[1:2]] == [second] * len(clips[1:2])
        assert sum(seen) == sum(len(set(trace.shown.tolist())) for trace in clips)
        with pytest.raises(UserError, match="cannot be compiled"):
            handle.compile()
        for trace in clips:
            assert all(torch.equal(trace.mask[number], trace.mask[first]) for number, first in enumerate(trace.shown.tolist()))


@torch.no_grad()
def test_patches_that_did_not_change_leave_first(monkeypatch):
    """Against the changes of each patch, looked at one by one, and the pixels that vary most among those of one kind."""
    model, left, still = tiny.video_llava(vision_feature_layer=-1), 6, 0.05
    batch = plain_video.inputs(plain_video.PROMPTS["mixed"])
    clips = batch["pixel_values_videos"]
    torch.manual_seed(0)
    clips *= torch.rand(len(clips), 1, 1, *clips.shape[-2:]).round(decimals=1)  # some patches vary more than others
    for one, clip in enumerate(clips):
        clip[1:] = clip[:1]
        for number, count in ((1, 2 * one), (2, 9)):  # in the last frame more patches change than stay before the first block
            for patch in torch.randperm(N)[:count].tolist():
                y, x = 8 * (patch // 4), 8 * (patch % 4)
                clip[number, :, y : y + 8, x : x + 8] += 0.1
        clip[2, :, :8, :8] += 0.01  # too little
    monkeypatch.setattr("fastervlm.families.video_llava.family.CHUNK", 2)
    with prune(model, 3, encoder_keep=EncoderSchedule([0], [left], still=still)) as handle:
        model(**dict(batch))
    traces: list[Any] = [trace for trace in handle.trace if isinstance(trace, fastervlm.ClipTrace)]
    for trace, clip in zip(traces, clips, strict=True):
        assert trace.shown.tolist() == [0, int(trace is not traces[0]), 2]  # of the first clip the second frame is the first
        for number in trace.shown.unique().tolist():
            frame = clip[number]
            places = [(8 * (patch // 4), 8 * (patch % 4)) for patch in range(N)]
            parts = [frame[:, y : y + 8, x : x + 8] for y, x in places]
            before = [clip[max(0, number - 1), :, y : y + 8, x : x + 8] for y, x in places]
            same = [number > 0 and float((a - b).abs().mean()) <= still for a, b in zip(parts, before, strict=True)]
            varied = [float(part.flatten(1).std(dim=1, correction=0).sum()) for part in parts]
            order = sorted(range(N), key=lambda i, same=same, varied=varied: (same[i], -varied[i]))
            entered = trace.scores[number].nonzero()[:, 0].tolist()
            assert entered == sorted(order[:left])
            assert [sum(same) == 0, sum(same) == N - 2, 0 < sum(same) < N - left][number]
    assert len(traces) == 2


@torch.no_grad()
def test_small_changes_add_up():
    """One patch changes in each frame; another by less than counts each time, until it has changed by more."""
    model = tiny.video_llava(vision_feature_layer=-1)
    batch = plain_video.inputs(plain_video.PROMPTS["mixed"])
    for clip in batch["pixel_values_videos"]:
        clip[1:] = clip[:1]
        for number in (1, 2):
            clip[number, :, :8, :8] += number
            clip[number, :, 8:16, :8] += 0.04 * number
    for schedule in (EncoderSchedule([0], [2], still=0.05), EncoderSchedule(still=0.05)):
        with prune(model, 2, encoder_keep=schedule) as handle:
            model(**dict(batch))
        clips: list[Any] = [trace for trace in handle.trace if isinstance(trace, fastervlm.ClipTrace)]
        for trace in clips:
            assert trace.shown.tolist() == [0, 1, 2]
            if schedule.blocks:
                assert (trace.scores[1:, 0] > 0).tolist() == [True, True]
                assert (trace.scores[1:, 4] > 0).tolist() == [False, True]


def test_patches_that_leave_first_keep_their_order():
    """Also where scores are all but equal, or as small as attention gets."""
    torch.manual_seed(0)
    scores = torch.cat([torch.tensor([1e-9, 4e-8, 2e-8, 0.0, 0.9]), 0.1 + 1e-7 * torch.rand(50), 1e5 * torch.rand(50)])[None]
    everyone = Survivors.all(1, scores.shape[1], scores.device)
    marked = everyone.marked(scores, torch.ones_like(scores, dtype=torch.bool))
    assert torch.equal(marked.argsort(dim=1, stable=True), scores.argsort(dim=1, stable=True))
    some = scores < 0.1
    assert everyone.marked(scores, some)[some].max() < 0


@pytest.mark.parametrize("keep_cls", [False, True])
@torch.no_grad()
def test_frames_and_pictures_beside_them(keep_cls):
    model, batch = tiny.video_llava(vision_feature_layer=-1), plain_video.inputs(plain_video.PROMPTS["mixed"])
    with prune(model, 5, keep_cls=keep_cls):
        exact = model(**dict(batch)).logits
    with prune(model, 5, keep_cls=keep_cls, encoder_keep=EncoderSchedule([1], [N])):
        assert torch.equal(model(**dict(batch)).logits, exact)
    with prune(model, 5, keep_cls=keep_cls, images=False, encoder_keep=EncoderSchedule([1], [7])) as handle:
        assert model(**dict(batch)).logits.isfinite().all()
    clips = [trace for trace in handle.trace if isinstance(trace, fastervlm.ClipTrace)]
    reference = Thinned(model, 5, {1: 7})
    reference.model.model.vision_tower = model.model.video_tower
    for trace, frames in zip(clips, batch["pixel_values_videos"], strict=True):
        scores = reference.scores(frames)
        assert torch.equal(trace.mask.nonzero()[:, 1].view(len(frames), -1), scores.topk(5).indices.sort(dim=1).values)
    pictures = [trace for trace in handle.trace if isinstance(trace, fastervlm.ImageTrace)]
    assert all(len(trace.index) == N for trace in pictures)


def test_a_difference_of_frames_is_a_number():
    for still in (-1.0, float("nan"), "1"):
        with pytest.raises(UserError, match="must be a number from 0") as caught:
            EncoderSchedule(still=still)  # type: ignore[arg-type]
        one_sentence(caught.value)
    with pytest.raises(UserError, match="do not fit together"):
        EncoderSchedule()
