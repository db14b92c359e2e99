"""Video-LLaVA under `prune`: against one pruned by hand, the stock model, and each row alone."""

import copy
import weakref
from typing import Any

import pytest
import torch
from transformers import VideoLlavaForConditionalGeneration

import fastervlm
from fastervlm import ClipTrace, FastV, ImageTrace, Mass, TokenBudget, Total, UserError
from fastervlm.families.video_llava import family
from fastervlm.families.video_llava.family import _by_chunk
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, MODES, SAMPLES, Collect, padded, tokens
from tests.support.plain import IMAGE_ID
from tests.support.plain_video import PROMPTS, VideoPlain, inputs, rows
from tests.support.tiny import VIDEO_ID
from tests.support.turns import behind

N = tiny.PATCHES
ONE, BOTH, MIXED = PROMPTS["one"], PROMPTS["clip and picture"], PROMPTS["mixed"]
each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
each_budget = pytest.mark.parametrize("budget", ["frame", "clip"])
each_side = pytest.mark.parametrize("side", ["left", "right"])
with_and_without_cls = pytest.mark.parametrize("keep_cls", [False, True])
# What is pruned is one thing, how it is generated another: few ways of the first stand for all in tests of the second.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "with cls": {"keep_cls": True, "images": False},
    "over the clip": {"budget": "clip"},
    "original positions": {"positions": "original", "budget": "clip", "keep_cls": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def model():
    """Shared: a test that changes it copies it. It says no placeholders, which no model reads as words without a cache."""
    model = tiny.video_llava()
    silent = torch.tensor([IMAGE_ID, VIDEO_ID])
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VIDEO_ID + 1).index_fill_(0, silent, -1e4))
    return model


def agree(model, batch, reference, **settings) -> Any:
    """Kept tokens and logits of each row are those of the reference; the batch is not padded. Returns the trace."""
    names = ("keep", "keep_cls", "images", "budget", "positions")
    with fastervlm.prune(model, **({name: getattr(reference, name) for name in names} | settings)) as handle:
        logits = model(**batch).logits
    shown = []
    for ours, (ids, own) in zip(logits, rows(batch), strict=True):
        close(ours, reference.logits(ids, own))
        shown += own or []
    check(handle.trace, reference, shown)
    return handle.trace


def check(traces, reference, shown):
    """Scores and kept patches of pictures and clips, in the order of the prompts."""
    assert [type(trace) for trace in traces] == [ClipTrace if one.dim() == 4 else ImageTrace for one in shown]
    for trace, one in zip(traces, shown, strict=True):
        scores, kept = reference.looked_at(one)[0], reference.choice(one)
        frames = trace.frames if one.dim() == 4 else [trace]
        assert [frame.index.tolist() for frame in frames] == kept
        torch.testing.assert_close(torch.stack([frame.scores for frame in frames]), scores, rtol=0, atol=1e-6)


# --- what is kept, and what stands before the language model


@each_budget
@with_and_without_cls
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 13, 16])
@torch.no_grad()
def test_logits_and_kept_tokens_are_those_by_hand(model, frames, keep_cls, budget):
    batch, reference = inputs(BOTH, frames), VideoPlain(model, N, keep_cls, budget=budget)
    for reference.keep in (1, N // 10 + 1, N // 2, N):
        for reference.images in (True, False):
            clip, picture = agree(model, batch, reference)
            assert clip.num_tokens == frames * (reference.keep + keep_cls)
            assert picture.num_tokens == (reference.keep if reference.images else N)


@each_batch
@torch.no_grad()
def test_every_way_of_pruning_on_every_prompt(model, texts):
    if len(texts) > 1:
        texts = texts[-1:]
    batch = inputs(texts, 4)
    for keep_cls in (False, True):
        for images in (True, False):
            for budget in ("frame", "clip"):
                for positions in ("compact", "original"):
                    agree(model, batch, VideoPlain(model, 3, keep_cls, images, budget, positions=positions))


@torch.no_grad()
def test_a_clip_shares_its_tokens_unequally(model):
    """Some frames are left with none, of which [CLS] stays if it is kept."""
    batch, reference = inputs(ONE, 8), VideoPlain(model, 1, budget="clip")
    shown: Any = next(rows(batch))[1]
    clip = reference.looked_at(shown[0])[0]
    for reference.keep_cls in (False, True):
        (trace,) = agree(model, batch, reference)
        counts = trace.mask.sum(dim=1).tolist()
        assert sum(counts) == 8
        assert 0 in counts
        assert max(counts) > 1
        assert trace.mask.flatten().nonzero().flatten().tolist() == clip.flatten().topk(8).indices.sort().values.tolist()
        assert trace.num_tokens == 8 + 8 * reference.keep_cls


@torch.no_grad()
def test_equal_scores_of_a_clip_go_to_the_earlier_frame(model):
    batch = inputs(ONE, 4)
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:, :1].expand(-1, 4, -1, -1, -1)
    with fastervlm.prune(model, 3, budget="clip") as handle:
        model(**batch)
    counts = handle.trace[0].mask.sum(dim=1).tolist()
    assert sum(counts) == 12
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("keep", "count"), [(0.1, 2), (0.5, 8), (1.0, N), (99, N), (TokenBudget(pruning_rate=0.9), 2)])
@torch.no_grad()
def test_fractions_are_of_one_frame(model, keep, count):
    for budget in ("frame", "clip", "crop"):
        reference = VideoPlain(model, count, budget="clip" if budget == "clip" else "frame")
        agree(model, inputs(ONE), reference, keep=keep, budget=budget)


@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@each_budget
@torch.no_grad()
def test_other_methods_choose_within_each_frame(model, method, budget):
    batch, reference = inputs(BOTH, 4), VideoPlain(model, 3, True, budget=budget)
    shown: Any = next(rows(batch))[1]
    with fastervlm.prune(model, 3, method=method, keep_cls=True, budget=budget) as handle:
        model(**batch)
    kept = {one.dim(): trace for one, trace in zip(shown, handle.trace, strict=True)}
    assert [len(frame) for frame in reference.choice(shown[0])] == kept[4].mask.sum(dim=1).tolist()
    chosen = {4: [frame.index.tolist() for frame in kept[4].frames], 3: [kept[3].index.tolist()]}
    assert chosen[4] != reference.choice(shown[0])
    reference.choice = lambda shown: chosen[shown.dim()]
    agree(model, batch, reference, method=method)


@torch.no_grad()
def test_adaptive_budgets(model):
    """Of each frame as much as holds three fifths of its attention; and a number for the whole clip."""
    batch, reference = inputs(ONE, 16), VideoPlain(model, 2, True, budget="clip")
    agree(model, batch, reference, keep=Total(32), budget="frame")

    def most_of_it(shown):
        found = []
        for row in reference.looked_at(shown)[0]:
            order, total = row.argsort(descending=True).tolist(), 0.0
            for count, patch in enumerate(order, start=1):
                total += float(row[patch])
                if total >= 0.6 * float(row.sum()):
                    found.append(sorted(order[:count]))
                    break
        return found

    reference.choice = most_of_it
    (trace,) = agree(model, batch, reference, keep=Mass(0.6), budget="frame")
    assert len(set(trace.mask.sum(dim=1).tolist())) > 1


@pytest.mark.parametrize("layer", [-1, -3, 1, [-2, -1], [1, 3, 2]])
@torch.no_grad()
def test_layers_by_the_config_and_by_the_call(layer):
    model = tiny.video_llava(vision_feature_layer=layer)
    batch, reference = inputs(BOTH), VideoPlain(model, 3, True, layer=layer)
    stock = model(**batch).logits
    agree(model, batch, reference)
    with fastervlm.prune(model, 1.0, keep_cls=True):
        assert torch.equal(model(**batch).logits, stock)
    model.config.vision_feature_layer = -2 if isinstance(layer, int) else [-2] * len(layer)
    agree(model, batch | {"vision_feature_layer": layer}, reference)


# --- batches, and the stock model


@each_side
@each_batch
@pytest.mark.parametrize("way", [WAYS["default"], WAYS["over the clip"] | {"keep_cls": True}])
@torch.no_grad()
def test_rows_in_a_batch_are_rows_alone(model, texts, way, side):
    batch, reference = inputs(texts, 4, side), VideoPlain(model, 3, **way)
    with fastervlm.prune(model, 3, **way) as handle:
        together = model(**batch).logits
    right, shown = side == "right" and bool((batch["attention_mask"] == 0).any()), []
    for ours, (ids, own) in zip(together, rows(batch), strict=True):
        alone = reference.logits(ids, own)
        close(ours[: len(alone)] if right else ours[-len(alone) :], alone)
        shown += own or []
    check(handle.trace, reference, shown)


@each_side
@each_batch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_keeping_all_gives_the_stock_logits_exactly(model, texts, side, dtype):
    one = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    batch = inputs(texts, 5, side)
    stock = one(**batch, labels=batch["input_ids"])
    every: list[dict[str, Any]] = [{}, {"images": False, "budget": "clip"}, {"positions": "original"}]
    for settings in every:
        with fastervlm.prune(one, 1.0, keep_cls=True, **settings):
            output = one(**batch, labels=batch["input_ids"])
        assert torch.equal(output.logits, stock.logits)
        assert torch.equal(output.loss, stock.loss)


@torch.no_grad()
def test_pictures_left_whole_are_exactly_those_of_the_stock_model(model):
    batch = inputs(PROMPTS["pictures"])
    stock = model(**batch).logits
    with fastervlm.prune(model, 1, images=False) as handle:
        assert torch.equal(model(**batch).logits, stock)
        with pytest.raises(AssertionError):
            check(handle.trace, VideoPlain(model, 1), [one for _, own in rows(batch) for one in own or []])


@torch.no_grad()
def test_the_kept_cls_is_that_of_the_stock_tower(model):
    """At K = 1 of no matter which patch, what stands at each frame's [CLS] placeholder is the stock projection of its [CLS]."""
    batch = inputs(PROMPTS["two clips"], 4)
    stock = model.model.get_video_features(batch["pixel_values_videos"]).pooler_output[:, 0]
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["inputs_embeds"]), with_kwargs=True
    )
    with fastervlm.prune(model, 1, keep_cls=True):
        model(**batch)
    hook.remove()
    wanted = [column for column, token in enumerate(batch["input_ids"][0].tolist()) if token == VIDEO_ID][:: N + 1]
    texts = [int((batch["input_ids"][0, :column] != VIDEO_ID).sum()) for column in wanted]
    places = [2 * clip_and_frame + text for clip_and_frame, text in enumerate(texts)]
    close(seen[0][0, places], stock)


@torch.no_grad()
def test_clips_and_pictures_shown_to_several_prompts_are_passed_once(model):
    texts = ["<video> and <image>?", "None.", "<image><video> or <video>!", "<image>."]
    batch = inputs(texts, 3)
    clips, pictures = batch["pixel_values_videos"], batch["pixel_values"]
    for name, index in (("video", [1, 0, 1]), ("image", [0, 2, 0])):
        key = "pixel_values_videos" if name == "video" else "pixel_values"
        batch[key] = batch[key][index]
    once = batch | {"pixel_values_videos": clips, "pixel_values": pictures}
    with fastervlm.prune(model, 3, budget="clip") as handle:
        expected, kept = model(**batch).logits, handle.trace
        found = model(**once, video_index=[1, 0, 1], image_index=torch.tensor([0, 2, 0])).logits
        close(found, expected)
        assert [trace.num_tokens for trace in handle.trace] == [trace.num_tokens for trace in kept]
        answers = model.generate(**once, video_index=[1, 0, 1], image_index=[0, 2, 0], **GREEDY)
        assert torch.equal(answers, model.generate(**batch, **GREEDY))
        with pytest.raises(UserError, match=r"video_index=\[1, 0, 3\] names videos that are not there: .* hold 3\."):
            model(**once, video_index=[1, 0, 3], image_index=[0, 2, 0])


@torch.no_grad()
def test_the_old_name_of_pictures(model):
    batch = inputs(BOTH)
    old = {"pixel_values_images" if name == "pixel_values" else name: value for name, value in batch.items()}
    with fastervlm.prune(model, 3):
        assert torch.equal(model(**old).logits, model(**batch).logits)
        assert torch.equal(model.generate(**old, **GREEDY), model.generate(**batch, **GREEDY))


# --- long clips


@pytest.mark.parametrize(
    ("keep", "settings"),
    [
        (3, {}),
        (3, {"keep_cls": True}),
        (3, {"budget": "clip", "keep_cls": True}),
        (1.0, {"keep_cls": True}),
        (2, {"method": "random", "budget": "clip"}),
        (Mass(0.5), {}),
        (Total(20), {}),
        (Mass(0.5), {"budget": "clip"}),
    ],
)
@torch.no_grad()
def test_the_size_of_a_chunk_does_not_matter(model, monkeypatch, keep, settings):
    """Two clips of seven frames; chunks begin and end within clips."""
    batch = inputs(PROMPTS["two clips"], 7)
    with fastervlm.prune(model, keep, **settings) as handle:
        expected, kept = model(**batch).logits, handle.trace
        for chunk in (1, 2, 5, 7, 13):
            monkeypatch.setattr(family, "CHUNK", chunk)
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
            for ours, theirs in zip(handle.trace, kept, strict=True):
                assert torch.equal(ours.mask, theirs.mask)
                torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-6)


@each_budget
@torch.no_grad()
def test_one_chunk_at_a_time_is_in_memory(model, monkeypatch, budget):
    """What was made of a chunk is gone before the next one comes as far, and no chunk is larger than it should be."""
    monkeypatch.setattr(family, "CHUNK", 4)
    alive, sizes = [], []

    def watch(module, args, output):
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(output))
        sizes.append(len(output))

    hook = model.model.video_tower.encoder.layers[1].layer_norm1.register_forward_hook(watch)  # of the feature block
    with fastervlm.prune(model, 3, budget=budget):
        model(**inputs(ONE, 14))
    hook.remove()
    assert sizes == [4, 4, 4, 2] * (2 if budget == "clip" else 1)


@torch.no_grad()
def test_more_frames_than_a_chunk_by_hand(model):
    frames = family.CHUNK + 3
    for budget in ("frame", "clip"):
        agree(model, inputs(ONE, frames), VideoPlain(model, 2, True, budget=budget))


def test_gradients_through_chunks_are_those_by_hand(model, monkeypatch):
    monkeypatch.setattr(family, "CHUNK", 2)
    model = copy.deepcopy(model)
    batch, reference = inputs(BOTH), VideoPlain(model, 3, True, budget="clip")
    ids, own = next(rows(batch))
    labels = torch.tensor(ids)[reference.columns(ids, own)]
    loss = torch.nn.functional.cross_entropy(reference.logits(ids, own)[:-1], labels[1:])
    loss.backward()
    model.train()
    with fastervlm.prune(model, 3, keep_cls=True, budget="clip"):
        output = model(**batch, labels=batch["input_ids"])
    close(output.loss, loss)
    output.loss.backward()
    for name in ("multi_modal_projector.linear_1", "video_tower.embeddings.patch_embedding", "image_tower.pre_layrnorm"):
        ours, theirs = (part.get_submodule(name).weight.grad for part in (model.model, reference.model.model))
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


# --- generation


@each_way
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_greedy_is_the_loop_by_hand(model, mode, way):
    for texts in (MIXED, PROMPTS["two clips"]):
        batch, reference = inputs(texts), VideoPlain(model, 3, **way)
        expected = padded([reference.greedy(*row, 6) for row in rows(batch)])
        with fastervlm.prune(model, 3, **way):
            found = tokens(model.generate(**batch, **(GREEDY | mode)))
        length = batch["input_ids"].shape[1]
        assert torch.equal(found[:, :length], batch["input_ids"])
        assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@pytest.mark.parametrize("text", ["?<video> or <image>?", "?<image> or <video>?", "<video>\nWhat? ASSISTANT:"])
def test_prompt_lookup_is_the_loop_by_hand(mode, text):
    """The first guess goes with the prompt: that on goes what stood behind an earlier question mark, a clip or a picture."""
    model, options, batch = tiny.video_llava(), GREEDY | mode, inputs([text])
    for way in (WAYS["default"], WAYS["original positions"]):
        expected = VideoPlain(model, 5, **way).greedy(*next(rows(batch)), options["max_new_tokens"])
        with fastervlm.prune(model, 5, **way):
            found = model.generate(**batch, **options)
        assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@each_way
@pytest.mark.parametrize("mode", BEAMS.values(), ids=BEAMS)
def test_beams_in_a_batch_are_those_of_rows_alone(model, mode, way):
    options, batch = GREEDY | mode, inputs(MIXED)
    answers, length = options.get("num_return_sequences", 1), batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3, **way):
        together = model.generate(**batch, **options)[:, length:].unflatten(0, (-1, answers))
        for ours, (ids, own) in zip(together, rows(batch), strict=True):
            alone: dict[str, Any] = {"input_ids": torch.tensor([ids])}
            for name, dims in (("pixel_values", 3), ("pixel_values_videos", 4)):
                shown = [one for one in own or [] if one.dim() == dims]
                alone |= {name: torch.stack(shown)} if shown else {}
            found = model.generate(**alone, **options)[:, len(ids) :]
            assert torch.equal(ours[:, : found.shape[1]], found)
            assert not ours[:, found.shape[1] :].any()


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES | MODES | LOOKUP).values(), ids=BEAMS | SAMPLES | MODES | LOOKUP)
def test_keeping_all_gives_the_stock_answers(model, mode):
    options, batch = GREEDY | mode, inputs(BOTH if "prompt_lookup_num_tokens" in mode else MIXED)
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    for positions in ("compact", "original")[: 1 if "prefill_chunk_size" in mode else 2]:
        with fastervlm.prune(model, 1.0, keep_cls=True, positions=positions):
            torch.manual_seed(3)
            assert torch.equal(tokens(model.generate(**batch, **options)), stock)


def test_sampling_draws_from_the_pruned_distribution(model):
    """Several answers of one row: each step's scores are those of the loop by hand for the answer so far."""
    batch, reference = inputs(MIXED), VideoPlain(model, 3, budget="clip")
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "max_new_tokens": 4}
    with fastervlm.prune(model, 3, budget="clip"):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
    assert len({tuple(row) for row in new}) > 8
    with torch.no_grad():
        for row, (ids, own) in enumerate(rows(batch)):
            for answer in range(3 * row, 3 * row + 3):
                for step, logits in enumerate(output.logits):
                    if plain.END_ID not in new[answer][:step]:
                        close(logits[answer], reference.logits(ids + new[answer][:step], own)[-1])


def test_text_only_turns_are_untouched(model):
    batch = inputs(["No picture here.", "Nor there."])
    stock, logits = model.generate(**batch, **GREEDY), model(**batch).logits
    with fastervlm.prune(model, 3) as handle:
        assert torch.equal(model.generate(**batch, **GREEDY), stock)
        assert torch.equal(model(**batch).logits, logits)
        assert handle.trace == []


def test_lengths_and_streamers_count_the_unpruned_prompt(model):
    batch, streamer = inputs(ONE), Collect()
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3):
        expected = model.generate(**batch, do_sample=False, max_new_tokens=7)
        assert torch.equal(model.generate(**batch, do_sample=False, max_length=length + 7, streamer=streamer), expected)
    assert streamer.parts[0] == batch["input_ids"][0].tolist()
    assert [token for part in streamer.parts for token in part] == expected[0].tolist()


@each_way
def test_a_second_turn_goes_on_from_the_cache(model, way):
    model = copy.deepcopy(model)
    model.lm_head.bias = torch.nn.Parameter(-1e4 * ((torch.arange(261) < 4) | (torch.arange(261) == VIDEO_ID)))
    batch, reference = inputs(["<video> or <image>?", "<image>, <video>?"]), VideoPlain(model, 3, **way)
    with fastervlm.prune(model, 3, **way):
        output = model.generate(**batch, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
        ids, mask = behind(batch, output.sequences, [" And then, what?", " Why?"])
        options = {"do_sample": False, "max_new_tokens": 4, CACHE: output[CACHE]}
        found = model.generate(input_ids=ids, attention_mask=mask, **options)
        for name in ("pixel_values", "pixel_values_videos"):
            with pytest.raises(UserError, match="Pictures cannot be added to a KV cache"):
                model.generate(input_ids=ids, attention_mask=mask, **options, **{name: batch[name]})
    history = batch | {"input_ids": ids, "attention_mask": mask}
    assert found[:, ids.shape[1] :].tolist() == [reference.greedy(*row, 4) for row in rows(history)]


# --- towers that read whole clips


@each_budget
@with_and_without_cls
@torch.no_grad()
def test_a_tower_with_attention_over_time_reads_whole_clips(model, monkeypatch, keep_cls, budget):
    """Its own forward and maps are the reference; frames of a clip see each other, and chunks do not part them."""
    from encoders import wrap
    from encoders.languagebind_tower import LanguageBindVisionModel

    monkeypatch.setattr(family, "CHUNK", 2)
    reference, model = VideoPlain(model, 3, keep_cls, budget=budget), copy.deepcopy(model)
    config = copy.deepcopy(model.config.vision_config)
    config.add_time_attn, config.num_frames = True, 8
    torch.manual_seed(5)
    tower = model.model.video_tower = LanguageBindVisionModel(config).eval()
    for parameter in tower.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    batch, known = inputs(PROMPTS["clips and text"], 3), {}

    def looked_at(shown):
        if id(shown) not in known:
            states = tower(shown[None], output_hidden_states=True).hidden_states[-2]
            known[id(shown)] = wrap(tower)(shown[None]).scores, states, shown
        return known[id(shown)][:2]

    reference.looked_at = looked_at
    shown = []
    with fastervlm.prune(model, 3, keep_cls=keep_cls, budget=budget) as handle:
        logits = model(**batch).logits
    for ours, (ids, own) in zip(logits, rows(batch), strict=True):
        alone = reference.logits(ids, own)
        close(ours[-len(alone) :], alone)
        shown += own or []
    check(handle.trace, reference, shown)


# --- beside pruning inside the language model


@each_way
def test_fastv_behind_a_pruned_prompt(model, way):
    """With all kept in front FastV is as ever; with all kept inside, so is the pruning in front; and both at once generate."""
    batch = inputs(MIXED)
    way = {name: value for name, value in way.items() if name != "positions"}
    with torch.no_grad():
        with fastervlm.prune(model, 5, method=FastV(1)):
            inside = model(**batch).logits
        with fastervlm.prune(model, 1.0, keep_cls=True), fastervlm.prune(model, 5, method=FastV(1)):
            close(model(**batch).logits, inside)
        with fastervlm.prune(model, 3, **way) as front:
            outside = model(**batch).logits
            with fastervlm.prune(model, 1.0, method=FastV(1)):
                close(model(**batch).logits, outside)
            with fastervlm.prune(model, 4, method=FastV(1)) as handle:
                model(**batch)
                counts = [len(trace.scores) for trace in handle.trace]
                shown = [sum(1 for _ in own or []) for _, own in rows(batch)]
                left = iter(trace.num_tokens for trace in front.trace)
                assert counts == [sum(next(left) for _ in range(many)) for many in shown]
                assert [trace.num_tokens for trace in handle.trace] == [min(4, count) for count in counts]
                for options in ({}, {"num_beams": 2}, {"use_cache": False}):
                    found = model.generate(**batch, **GREEDY, **options)
                    assert torch.equal(found[:, : batch["input_ids"].shape[1]], batch["input_ids"])


# --- the handle


def test_remove_undoes_exactly(model):
    model = copy.deepcopy(model)
    before, config = dict(vars(model)), model.config.to_dict()
    parts = {name: dict(vars(module)) for name, module in model.named_modules() if name}
    batch = inputs(MIXED)
    with torch.no_grad():
        stock = model(**batch).logits
        handle = fastervlm.prune(model, 3, keep_cls=True, budget="clip")
        model.generate(**batch, **GREEDY)
        assert {name: dict(vars(module)) for name, module in model.named_modules() if name} == parts
        handle.remove()
        assert dict(vars(model)) == before
        assert model.config.to_dict() == config
        assert torch.equal(model(**batch).logits, stock)
    assert type(model) is VideoLlavaForConditionalGeneration


@torch.no_grad()
def test_the_trace_of_a_clip(model):
    with fastervlm.prune(model, 3, keep_cls=True) as handle:
        assert handle.trace == []
        model(**inputs(BOTH, 4))
    (trace, picture) = handle.trace
    assert trace.scores.shape == trace.mask.shape == (4, N)
    assert (trace.grid, trace.keep_cls, trace.num_tokens) == ((4, 4), True, 4 * (3 + 1))
    assert [frame.num_tokens for frame in trace.frames] == [3] * 4
    assert isinstance(picture, ImageTrace)
    with pytest.raises(UserError, match=r"pass one frame with its own trace, such as trace.frames\[0\]\.") as error:
        fastervlm.overlay(plain.pictures(1)[0], trace)
    one_sentence(error.value)
    assert fastervlm.overlay(plain.pictures(1)[0], trace.frames[0]).mode == "RGB"


# --- what is refused


@pytest.mark.parametrize("name", ["video_tower", "image_tower"])
def test_each_tower_is_looked_at_before_anything_is_changed(model, name):
    model = copy.deepcopy(model)
    setattr(model.model, name, torch.nn.Identity())
    with pytest.raises(UserError):
        fastervlm.prune(model, 3)


def as_list(batch):
    batch["pixel_values_videos"] = list(batch["pixel_values_videos"])


def frames_alone(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"].flatten(0, 1)


def without_clips(batch):
    del batch["pixel_values_videos"]


def without_pictures(batch):
    del batch["pixel_values"]


def a_frame_less(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:, 1:]


def a_picture_more(batch):
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)


def both_names(batch):
    batch["pixel_values_images"] = batch["pixel_values"]


def frames_of_another_size(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][..., :24]


def embeds(batch):
    batch["inputs_embeds"] = torch.zeros(*batch.pop("input_ids").shape, 32)


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


WRONG = [
    (as_list, "pixel_values_videos must be one tensor; call the processor with return_tensors='pt'."),
    (frames_alone, r"pixel_values_videos of shape \(B, F, 3, H, W\) are needed, but these are \(3, 3, 32, 32\)."),
    (without_clips, "holds video placeholders but there is no video; pass pixel_values_videos too."),
    (without_pictures, "holds image placeholders but there is no picture; pass pixel_values too."),
    (
        a_frame_less,
        "hold 51 video placeholder tokens, but 1 videos need 34; make input_ids and pixel_values_videos in one call",
    ),
    (a_picture_more, "hold 16 image placeholder tokens, but 2 pictures need 32; make input_ids and pixel_values in one call"),
    (both_names, "pixel_values and pixel_values_images are two names of the same pictures; pass one of them."),
    (frames_of_another_size, "reads pictures of 32 x 32 pixels, but these are 32 x 24"),
    (embeds, "pass input_ids, not inputs_embeds."),
    (full_strategy, "vision_feature_select_strategy='full' also feeds .* use 'default'."),
]


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_wrong_inputs(model, what, spoil, sentence):
    batch = inputs(BOTH)
    spoil(batch)
    with fastervlm.prune(model, 3), pytest.raises(UserError, match=sentence) as error:
        getattr(model, what)(**batch)
    one_sentence(error.value)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (
            "video_llava",
            {"budget": "image"},
            "budget='image' means nothing to a VideoLlava.*; choose one of frame, clip, crop.",
        ),
        ("video_llava", {"budget": "frames"}, "budget='frames' is not known; choose one of crop, image, frame, clip."),
        ("video_llava", {"keep_cls": "yes"}, "keep_cls='yes' must be True or False."),
        (
            "video_llava",
            {"keep_cls": True, "method": FastV(1)},
            "keep_cls=True is for clips pruned in front of .*; leave it out.",
        ),
        (
            "video_llava",
            {"images": False, "method": FastV(1)},
            "images=False is for clips pruned in front of .*; leave it out.",
        ),
        ("llava", {"budget": "clip"}, "budget='clip' means nothing to a LlavaFor.*; choose one of crop, image."),
        ("llava", {"keep_cls": True}, "keep_cls=True is for clips pruned in front of .* of a Video-LLaVA; leave it out."),
        ("llava_next", {"budget": "frame"}, "budget='frame' means nothing to a LlavaNext.*; choose one of crop, image."),
        ("llava_next", {"images": False}, "images=False is for clips pruned in front of .* of a Video-LLaVA; leave it out."),
    ],
)
def test_settings_that_mean_nothing(kind, settings, sentence):
    one = getattr(tiny, kind)()
    before = dict(vars(one))
    with pytest.raises(UserError, match=sentence) as error:
        fastervlm.prune(one, 3, **settings)
    one_sentence(error.value)
    assert dict(vars(one)) == before


def test_a_model_that_keeps_cls_of_pictures_and_clips_for_other_models():
    with pytest.raises(UserError, match="use 'default'"):
        fastervlm.prune(tiny.video_llava(vision_feature_select_strategy="full"), 3)
    llava, batch = tiny.llava(), inputs(["<image>?"])
    with fastervlm.prune(llava, 3), pytest.raises(UserError, match="has no use for pixel_values_videos; leave it out") as error:
        llava(**batch, pixel_values_videos=torch.zeros(1, 2, 3, 32, 32))
    one_sentence(error.value)


def test_a_gap_behind_the_prompt_is_refused(model):
    batch = inputs(["What? <video>"])
    with fastervlm.prune(model, 1, positions="original"), pytest.raises(UserError, match="cannot end with a picture"):
        model.generate(**batch, **GREEDY)


@pytest.mark.parametrize(("size", "expected"), [(4, ["aaab", "bb"]), (2, ["aa", "ab", "bb"])])
def test_each_frame_of_a_chunk_goes_with_its_clips_question(size, expected):
    """Of two clips with three frames each, in chunks of frames or of clips."""
    videos = torch.zeros(2, 3, 3, 4, 4)
    chunks = videos.flatten(0, 1).split(size)
    assert ["".join(about or []) for about in _by_chunk(["a", "b"], chunks, 3)] == expected
    assert _by_chunk(["a", "b"], videos.split(1), 3) == [["a"] * 3, ["b"] * 3]
    assert _by_chunk(None, videos.split(1), 3) == [None, None]
