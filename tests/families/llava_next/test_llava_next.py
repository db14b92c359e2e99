"""LLaVA-NeXT under `prune`: against one pruned by hand, the stock model, and each row alone."""

import copy
from itertools import groupby
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, DynamicCache, LlavaNextProcessor, pipeline

import fastervlm
from fastervlm import KeptTokens, RandomTokens, TokenBudget, UserError
from fastervlm.generation.kv_cache import CACHE
from fastervlm.methods.baselines import lattice
from tests.support import plain_next, tiny
from tests.support.checks import close, one_sentence
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, SAMPLES, Collect, padded, tokens
from tests.support.generation_modes import MODES as PLAIN_MODES
from tests.support.plain_next import CYCLE, MODES, PROMPTS, SIZES, NextPlain, inputs, noise, processor_of, traces

N = tiny.PATCHES
ONE, TWO = PROMPTS["one"], PROMPTS["two pictures"]
each_mode = pytest.mark.parametrize("anyres", MODES)
each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
both_positions = pytest.mark.parametrize("positions", ["compact", "original"])


@pytest.fixture(scope="module")
def model():
    """Shared: a test that changes it copies it."""
    return tiny.llava_next()


@pytest.fixture(scope="module")
def odd_model():
    """Of 7 x 7 patches a crop."""
    return tiny.llava_next(crop=56)


def agree(model, batch, reference, rows=None, **settings) -> Any:
    """Kept tokens and logits of each row are those of the reference; the batch is not padded. Returns the trace."""
    rows = rows or list(reference.rows(batch))
    given: dict[str, Any] = {"keep": reference.keep, "newline": reference.newline, "budget": reference.budget} | settings
    with fastervlm.prune(model, anyres=reference.anyres, **given) as handle:
        logits = model(**batch).logits
    for ours, row in zip(logits, rows, strict=True):
        close(ours, reference.logits(*row))
    pictures = [picture for _, own in rows for picture in own or []]
    assert [trace.tokens.tolist() for trace in traces(handle)] == [reference.tokens(picture) for picture in pictures]
    return traces(handle)


# --- one picture: what is kept, and what stands before the language model


@each_mode
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_logits_and_kept_tokens_are_those_by_hand(model, size, anyres):
    batch, reference = inputs(ONE, [size], anyres), NextPlain(model, N, anyres)
    rows = list(reference.rows(batch))
    for reference.keep in (1, 3, N // 10 + 1, N // 2, N):
        agree(model, batch, reference, rows)


@each_mode
@pytest.mark.parametrize("name", ["square", "4:3", "2:3", "16:9", "panorama", "tower", "one wide", "one high"])
@torch.no_grad()
def test_a_tower_with_an_odd_number_of_patches(odd_model, name, anyres):
    size = tuple(length * 7 // 4 for length in SIZES[name])
    batch, reference = inputs(ONE, [size], anyres, crop=56), NextPlain(odd_model, 49, anyres)
    rows = list(reference.rows(batch))
    for reference.keep in (1, 5, 24, 49):
        agree(odd_model, batch, reference, rows)


@pytest.mark.parametrize("points", [[[32, 32]], [[96, 96]], [[64, 96], [32, 32]], [[32, 160]]])
@each_mode
@torch.no_grad()
def test_other_canvases(points, anyres):
    """Of one crop, and such that un-padding removes whole crops but not all."""
    model = tiny.llava_next(image_grid_pinpoints=points)
    reference = NextPlain(model, 3, anyres)
    for size in [(50, 50), (20, 150), (150, 20), (1, 1), (1, 70), (32, 32)]:
        batch = inputs(ONE, [size], anyres, image_grid_pinpoints=points)
        for reference.keep, reference.budget in ((3, "crop"), (3, "image"), (N, "crop")):
            agree(model, batch, reference)
        if anyres == "native":
            stock = model(**batch).logits
            with fastervlm.prune(model, N):
                assert torch.equal(model(**batch).logits, stock)


@pytest.mark.parametrize(("size", "count"), [((480, 640), 145), ((427, 640), 87), ((1000, 300), 116)])
@torch.no_grad()
def test_token_counts_of_the_paper(size, count):
    """29 of the 576 patches of each crop."""
    real: dict[str, Any] = {"crop": 336, "patch": 14}
    model, batch = tiny.llava_next(**real), inputs(ONE, [size], "paper", **real)
    with fastervlm.prune(model, 29, anyres="paper") as handle:
        logits = model(**batch).logits
    assert traces(handle)[0].tokens.shape == (count,)
    assert batch["input_ids"].shape[1] - logits.shape[1] == int((batch["input_ids"] == 3).sum()) - count


@pytest.mark.parametrize("newline", ["kept", "all", "none"])
@pytest.mark.parametrize("budget", ["crop", "image"])
@pytest.mark.parametrize("name", ["4:3", "1:3", "tower", "one canvas", "one wide", "one high"])
@torch.no_grad()
def test_newlines_and_budgets(model, name, newline, budget):
    batch, reference = inputs(ONE, [SIZES[name]]), NextPlain(model, 3, newline=newline, budget=budget)
    rows, lines = list(reference.rows(batch)), reference.order(SIZES[name]).count(plain_next.NEWLINE)
    for reference.keep in (1, 3, 8):
        (trace,) = agree(model, batch, reference, rows)
        total = sum(min(reference.keep, len(inside)) for _, inside, _, _ in windows(reference, SIZES[name]))
        assert int(trace.mask.sum()) == total
        found = int((trace.tokens == plain_next.NEWLINE).sum())
        assert found == len(trace.tokens) - total
        if newline == "all" or (newline == "kept" and name == "one wide"):
            assert found == lines
        else:
            assert found <= (lines if newline == "kept" else 0)


@torch.no_grad()
def test_shared_budgets_of_the_paper(model):
    """(1 + crops) * K in all, shared unequally; there are no newlines to speak of."""
    reference, shares = NextPlain(model, 3, "paper", budget="image"), set()
    for name in ("4:3", "3:2", "panorama", "one wide"):
        batch = inputs(ONE, [SIZES[name]], "paper")
        for reference.newline in ("kept", "all", "none"):
            (trace,) = agree(model, batch, reference)
            assert trace.tokens.shape == (3 * reference.crops(SIZES[name]),)
            shares |= set(trace.mask.sum(1).tolist())
    assert len(shares) > 3


@each_mode
@pytest.mark.parametrize(
    ("keep", "count"), [(0.1, 2), (0.5, 8), (1.0, N), (99, N), (TokenBudget(pruning_rate=0.9), 2), (TokenBudget(0.3), 5)]
)
@torch.no_grad()
def test_fractions_are_of_a_whole_crop(model, anyres, keep, count):
    reference = NextPlain(model, count, anyres)
    for name, reference.budget in (("4:3", "crop"), ("panorama", "crop"), ("panorama", "image"), ("one high", "crop")):
        agree(model, inputs(ONE, [SIZES[name]], anyres), reference, keep=keep)


# --- other methods


def windows(reference, size):
    """For each crop that takes part: its number, and the numbers, rows and columns of its patches."""
    numbers = sorted(set(reference.order(size)) - {plain_next.NEWLINE})
    for crop, group in groupby(numbers, key=lambda number: number // N):
        inside = list(group)
        high = len({number % N // 4 for number in inside})
        yield crop, inside, high, len(inside) // high


@each_mode
@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@pytest.mark.parametrize("name", ["4:3", "panorama", "tower", "one pixel", "one wide"])
@torch.no_grad()
def test_other_methods_choose_within_each_crop(model, name, method, anyres):
    """Padding that is taken off again is never chosen, and the rest is the same as ever."""
    size, batch, reference = SIZES[name], inputs(ONE, [SIZES[name]], anyres), NextPlain(model, 5, anyres)
    _, ((pixels, _),) = next(reference.rows(batch))
    marks = reference.scores(pixels).flatten().tolist()
    with fastervlm.prune(model, 5, method=method, anyres=anyres) as handle:
        model(**batch)
    chosen = set(traces(handle)[0].mask.flatten().nonzero().flatten().tolist())
    allowed = set()
    for crop, inside, high, wide in windows(reference, size):
        own = sorted(number for number in chosen if number // N == crop)
        assert len(own) == min(5, len(inside))
        allowed |= set(inside)
        if method == "grid":
            assert own == [inside[place] for place in lattice(high, wide, min(5, len(inside)))]
        if method == "cls-lowest":
            assert own == sorted(sorted(inside, key=lambda number: marks[number])[:5])
    assert chosen <= allowed
    reference.choice = lambda picture: chosen
    agree(model, batch, reference, method=method)


@each_mode
@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@torch.no_grad()
def test_other_methods_share_a_budget_by_score_too(model, method, anyres):
    """Each crop has as many tokens as by [CLS] attention, wherever in it."""
    size, reference = SIZES["4:3"], NextPlain(model, 3, anyres, budget="image")
    batch = inputs(ONE, [size], anyres)
    _, (picture,) = next(reference.rows(batch))
    best = [number // N for number in reference.choice(picture)]
    with fastervlm.prune(model, 3, method=method, anyres=anyres, budget="image") as handle:
        model(**batch)
    trace = traces(handle)[0]
    assert trace.mask.sum(1).tolist() == [best.count(crop) for crop in range(reference.crops(size))]
    assert set(trace.mask.flatten().nonzero().flatten().tolist()) <= set(reference.order(size))


@each_mode
@torch.no_grad()
def test_random_depends_on_seed_and_picture_alone(model, anyres):
    pictures, processor = plain_next.noise(CYCLE[:4] * 2), processor_of(anyres)

    def draw(seed, images):
        text = "<image>" * len(images) + "?"
        with fastervlm.prune(model, 3, method=RandomTokens(seed), anyres=anyres) as handle:
            model(**processor(images=images, text=text, return_tensors="pt"))
        return [trace.tokens.tolist() for trace in traces(handle)]

    together = draw(0, pictures)
    assert [draw(0, [picture])[0] for picture in pictures] == together
    for i, (mine, theirs) in enumerate(zip(draw(1, pictures), together, strict=True)):
        assert mine != theirs
        assert theirs != together[i - 4]  # another picture of that size


@each_mode
@torch.no_grad()
def test_a_method_sees_one_window_after_another(model, anyres):
    """Scores, attention, features on demand and grid of the patches that take part; here the longest features win."""
    size, batch, reference = SIZES["panorama"], inputs(ONE, [SIZES["panorama"]], anyres), NextPlain(model, 3, anyres)
    _, ((pixels, _),) = next(reference.rows(batch))
    states = reference.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    lengths, seen = states.norm(dim=-1).flatten().tolist(), []

    def longest(patches, k):
        features = patches.features()
        count = patches.grid[0] * patches.grid[1]
        assert features.shape[:2] == patches.scores.shape == (len(patches.image_key), count)
        back = torch.arange(count - 1, -1, -1).expand(len(features), -1)
        torch.testing.assert_close(patches.features(back), features.flip(1))
        close(patches.cls_attention.mean(1), patches.scores)
        seen.append((len(features), patches.grid, k))
        return KeptTokens.top(features.norm(dim=-1), k)

    chosen, grids = set(), []
    for _, inside, high, wide in windows(reference, size):
        chosen |= set(sorted(inside, key=lambda number: -lengths[number])[:3])
        grids.append((high, wide))
    reference.choice = lambda picture: chosen
    agree(model, batch, reference, method=longest)
    assert sorted(grid for many, grid, _ in seen for _ in range(many)) == sorted(grids)


# --- batches


@pytest.mark.parametrize("side", ["left", "right"])
@each_mode
@each_batch
@torch.no_grad()
def test_rows_in_a_batch_are_rows_alone(model, texts, anyres, side):
    """Pictures of other grids, several of them, or none, in the rows beside."""
    batch, reference = inputs(texts, anyres=anyres, side=side), NextPlain(model, 5, anyres)
    rows = list(reference.rows(batch))
    with fastervlm.prune(model, 5, anyres=anyres) as handle:
        together = model(**batch).logits
    for ours, row in zip(together, rows, strict=True):
        alone = reference.logits(*row)
        padded = bool((batch["attention_mask"] == 0).any())
        close(ours[-len(alone) :] if side == "left" or not padded else ours[: len(alone)], alone)
    pictures = [picture for _, own in rows for picture in own or []]
    assert [trace.tokens.tolist() for trace in traces(handle)] == [reference.tokens(picture) for picture in pictures]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["left", "right"])
@each_batch
@torch.no_grad()
def test_keeping_all_gives_the_stock_logits_exactly(model, texts, side, dtype):
    one = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    batch = inputs(texts, side=side)
    every: list[dict[str, Any]] = [{}, {"newline": "all", "budget": "image"}, {"positions": "original"}]
    stock = one(**batch, labels=batch["input_ids"])
    for settings in every if dtype == torch.float32 else every[:1]:
        with fastervlm.prune(one, 1.0, **settings):
            output = one(**batch, labels=batch["input_ids"])
        assert torch.equal(output.logits, stock.logits)
        assert torch.equal(output.loss, stock.loss)


@torch.no_grad()
def test_keeping_all_of_every_size_gives_the_stock_logits_exactly(model):
    sizes = list(SIZES.values()) + [(3 * i % 130 + 1, 7 * i % 110 + 1) for i in range(20)]
    for size in sizes:
        batch = inputs(ONE, [size])
        stock = model(**batch).logits
        with fastervlm.prune(model, N):
            assert torch.equal(model(**batch).logits, stock), size


@each_mode
@torch.no_grad()
def test_pictures_shown_to_several_prompts_are_passed_once(model, anyres):
    """In any order, and with prompts without a picture between."""
    texts = ["<image>?", "<image> or <image>?", "None.", "<image><image>!"]
    sizes = [(60, 80), (20, 90), (40, 60)]
    shown = [1, 0, 1, 2, 2]
    batch, once = inputs(texts, [sizes[i] for i in shown], anyres), inputs(["<image>"] * 3, sizes, anyres)
    for name in ("pixel_values", "image_sizes"):
        batch[name] = once[name][shown]
    with fastervlm.prune(model, 5, anyres=anyres) as handle:
        each, kept = model(**batch).logits, [trace.tokens.tolist() for trace in traces(handle)]
        batch |= {"pixel_values": once["pixel_values"], "image_sizes": once["image_sizes"]}
        close(model(**batch, image_index=shown).logits, each)
        assert [trace.tokens.tolist() for trace in traces(handle)] == kept
        found = model.generate(**batch, image_index=torch.tensor(shown), **GREEDY)
        assert found.shape[1] > batch["input_ids"].shape[1]
        with pytest.raises(UserError, match="image_index"):
            model(**batch, image_index=[1, 0, 1, 2, 3])


@each_mode
@torch.no_grad()
def test_crops_may_be_passed_one_after_another(model, anyres):
    """(S, 3, H, W) for all pictures; and sizes as a list."""
    batch, reference = inputs(TWO, anyres=anyres), NextPlain(model, 5, anyres)
    crops = [pixels for pixels, _ in next(reference.rows(batch))[1]]
    with fastervlm.prune(model, 5, anyres=anyres):
        expected = model(**batch).logits
        batch["pixel_values"], batch["image_sizes"] = torch.cat(crops), batch["image_sizes"].tolist()
        assert torch.equal(model(**batch).logits, expected)


@each_mode
@both_positions
@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_without_a_mask_or_a_cache(model, anyres, positions, cache):
    batch, reference = inputs(TWO, anyres=anyres), NextPlain(model, 3, anyres, positions=positions)
    expected = reference.logits(*next(reference.rows(batch)))
    del batch["attention_mask"]
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        close(model(**batch, use_cache=cache).logits[0], expected)


@pytest.mark.parametrize("layer", [-1, 1, [-2, -1]])
@torch.no_grad()
def test_other_layers(layer):
    model, batch = tiny.llava_next(vision_feature_layer=layer), inputs(TWO)
    reference = NextPlain(model, 3)
    reference.layer, stock = layer, model(**batch).logits
    agree(model, batch, reference)
    with fastervlm.prune(model, N):
        assert torch.equal(model(**batch).logits, stock)


# --- generation


@each_mode
@both_positions
@each_batch
def test_greedy_is_the_loop_by_hand(model, texts, anyres, positions):
    batch, reference = inputs(texts, anyres=anyres), NextPlain(model, 3, anyres, positions=positions)
    expected = padded([reference.greedy(*row, 4) for row in reference.rows(batch)])
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        found = model.generate(**batch, do_sample=False, max_new_tokens=4)
    assert torch.equal(found[:, :length], batch["input_ids"])
    assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", PLAIN_MODES.values(), ids=PLAIN_MODES)
@each_mode
def test_every_mode_gives_the_same(model, anyres, mode):
    batch, reference = inputs(PROMPTS["some without"], anyres=anyres), NextPlain(model, 5, anyres)
    expected = padded([reference.greedy(*row, 6) for row in reference.rows(batch)])
    with fastervlm.prune(model, 5, anyres=anyres):
        found = tokens(model.generate(**batch, **(GREEDY | mode)))
    assert found[:, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@each_mode
@both_positions
def test_prompt_lookup_is_the_loop_by_hand(model, anyres, positions, mode):
    batch, options = inputs(ONE, anyres=anyres), GREEDY | mode
    reference = NextPlain(model, 3, anyres, positions=positions)
    expected = reference.greedy(*next(reference.rows(batch)), options["max_new_tokens"])
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        found = model.generate(**batch, **options)
    assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES).values(), ids=BEAMS | SAMPLES)
@pytest.mark.parametrize("texts", [PROMPTS["ragged pictures"], PROMPTS["some without"]])
def test_keeping_all_gives_the_stock_answers(model, texts, mode):
    batch, options = inputs(texts), GREEDY | mode
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    with fastervlm.prune(model, N):
        torch.manual_seed(3)
        assert torch.equal(tokens(model.generate(**batch, **options)), stock)


@pytest.mark.parametrize("mode", BEAMS.values(), ids=BEAMS)
@each_mode
def test_beams_of_a_row_in_a_batch_are_those_of_the_row_alone(model, anyres, mode):
    options, batch = GREEDY | mode, inputs(PROMPTS["ragged pictures"], anyres=anyres)
    answers, length = options.get("num_return_sequences", 1), batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5, anyres=anyres):
        together = tokens(model.generate(**batch, **options))[:, length:]
        for i, (ids, pictures) in enumerate(NextPlain(model, 5, anyres).rows(batch)):
            alone = {"input_ids": torch.tensor([ids]), "image_sizes": torch.tensor([size for _, size in pictures])}
            alone["pixel_values"] = torch.cat([pixels for pixels, _ in pictures])
            found = tokens(model.generate(**alone, **options))[:, len(ids) :]
            ours = together[i * answers : (i + 1) * answers]
            assert torch.equal(ours[:, : found.shape[1]], found)
            assert not ours[:, found.shape[1] :].any()


@each_mode
def test_sampling_draws_from_the_pruned_distribution(model, anyres):
    batch, reference = inputs(PROMPTS["ragged"], anyres=anyres), NextPlain(model, 5, anyres)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": 4}
    with fastervlm.prune(model, 5, anyres=anyres):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
    for row, (ids, pictures) in enumerate(reference.rows(batch)):
        for answer in (2 * row, 2 * row + 1):
            if 2 not in new[answer][:3]:
                expected = reference.logits(ids + new[answer][:3], pictures)[-4:]
                close(torch.stack([logits[answer] for logits in output.logits]), expected)


@each_mode
def test_streamer_lengths_and_pipeline(model, anyres):
    batch, streamer, reference = inputs(ONE, anyres=anyres), Collect(), NextPlain(model, 5, anyres)
    length, ((ids, pictures),) = batch["input_ids"].shape[1], reference.rows(batch)
    expected = reference.greedy(ids, pictures, 6)
    processor = processor_of(anyres)
    with fastervlm.prune(model, 5, anyres=anyres):
        found = model.generate(**batch, do_sample=False, max_length=length + 6, streamer=streamer)
        ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
        answers = ask(images=[plain_next.noise(CYCLE[:1])], text=ONE, generate_kwargs=GREEDY, return_full_text=False)
    assert found[0, length:].tolist() == expected
    assert [token for part in streamer.parts for token in part] == found[0].tolist()
    assert answers[0]["generated_text"] == processor.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("given", [False, True], ids=["cache returned", "cache given"])
@each_mode
@both_positions
@pytest.mark.parametrize("texts", [PROMPTS["ragged pictures"], PROMPTS["some without"]])
def test_turns_go_on_from_the_cache(model, texts, anyres, positions, given):
    """By `generate`, the sizes of the pictures still beside the ids or not, and by `forward`."""
    one = copy.deepcopy(model)
    one.lm_head.bias = torch.nn.Parameter(-1e4 * (torch.arange(260) < 4))  # no row ends
    batch, reference = inputs(texts, anyres=anyres), NextPlain(one, 5, anyres, positions=positions)
    rows, options = list(reference.rows(batch)), {"do_sample": False, "max_new_tokens": 3, "return_dict_in_generate": True}
    cache = DynamicCache(config=one.config.get_text_config()) if given else None
    past = {CACHE: cache} if given else {}
    new = torch.tensor(tiny.tokenizer()(" And?")["input_ids"]).expand(len(texts), -1)
    with fastervlm.prune(one, 5, anyres=anyres, positions=positions):
        first = one.generate(**batch, **past, **options)
        history = torch.cat((first.sequences, new), dim=1)
        mask = torch.cat((batch["attention_mask"], torch.ones_like(history[:, batch["attention_mask"].shape[1] :])), dim=1)
        rest = {"attention_mask": mask, CACHE: first[CACHE]}
        rest |= {"image_sizes": batch["image_sizes"]} if given else {}
        second = one.generate(history, **rest, **options)
        step = one(input_ids=second.sequences[:, -1:], **{CACHE: second[CACHE]}).logits[:, -1]
    length = history.shape[1]
    for row, (ids, pictures) in enumerate(rows):
        known = ids + history[row, -len(new[0]) - 3 :].tolist()
        assert second.sequences[row, length:].tolist() == reference.greedy(known, pictures, 3)
        close(step[row], reference.logits(known + second.sequences[row, length:].tolist(), pictures)[-1])


# --- training


@each_mode
def test_loss_and_gradients_are_those_by_hand(model, anyres):
    one, batch = copy.deepcopy(model), inputs(TWO, anyres=anyres)
    reference = NextPlain(one, 3, anyres)
    ids, pictures = next(reference.rows(batch))
    labels = torch.tensor(ids)[reference.columns(ids, pictures)]
    expected = torch.nn.functional.cross_entropy(reference.logits(ids, pictures)[:-1], labels[1:])
    expected.backward()
    one.train()
    with fastervlm.prune(one, 3, anyres=anyres):
        loss = one(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    close(loss, expected)
    for (name, ours), theirs in zip(one.named_parameters(), reference.model.parameters(), strict=True):
        if ours.grad is None:
            assert theirs.grad is None or not theirs.grad.any(), name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert one.model.multi_modal_projector.linear_1.weight.grad.any()
    assert one.model.vision_tower.embeddings.patch_embedding.weight.grad.any()
    assert (one.model.image_newline.grad is None) is (anyres == "paper") or not one.model.image_newline.grad.any()


# --- the handle


@torch.no_grad()
def test_remove_and_copies(model, tmp_path):
    one, batch = copy.deepcopy(model), inputs(PROMPTS["ragged"])
    stock, before, state = one(**batch).logits, dict(vars(one)), copy.deepcopy(one.state_dict())
    one.save_pretrained(tmp_path / "before")
    handle = fastervlm.prune(one, 3, newline="none", budget="image")
    mine, twin = one(**batch).logits, copy.deepcopy(one)
    assert list(one.state_dict()) == list(state)
    one.save_pretrained(tmp_path / "pruned")
    handle.trace.clear()
    assert torch.equal(twin(**batch).logits, mine)
    assert handle.trace == []
    handle.remove()
    assert dict(vars(one)) == before
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    assert torch.equal(one(**batch).logits, stock)
    assert torch.equal(twin(**batch).logits, mine)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "pruned" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


# --- what is refused


def no_sizes(batch):
    del batch["image_sizes"]


def a_size_less(batch):
    batch["image_sizes"] = batch["image_sizes"][:1]


def a_picture_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:1]


def a_picture_and_size_less(batch):
    a_size_less(batch)
    a_picture_less(batch)


def a_crop_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:, :-1]


def crops_without_a_picture_axis(batch):
    batch["pixel_values"] = batch["pixel_values"][0]


def one_placeholder_less(batch):
    batch["input_ids"][0, batch["input_ids"][0].tolist().index(3)] = 50


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


def smaller_crops(batch):
    batch["pixel_values"] = batch["pixel_values"][..., :24]


def no_pictures(batch):
    del batch["pixel_values"]


WRONG = {
    no_sizes: "LLaVA-NeXT needs image_sizes beside pixel_values; pass all that the processor returns",
    a_size_less: "image_sizes has 1 rows for 2 pictures",
    a_picture_less: "image_sizes has 2 rows for 1 pictures",
    a_picture_and_size_less: "hold .* image placeholder tokens, but 1 pictures need",
    a_crop_less: "do not hold the .* crops of 2 pictures",
    crops_without_a_picture_axis: "do not hold the .* crops of 2 pictures",
    one_placeholder_less: "image placeholder tokens, but 2 pictures need",
    full_strategy: "vision_feature_select_strategy='full' also feeds .* use 'default'",
    smaller_crops: r"reads crops of 32 x 32 pixels, but pixel_values is \(.*32, 24\)",
    no_pictures: "holds image placeholders but there is no picture; pass pixel_values too",
}


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG.items(), ids=[spoil.__name__ for spoil in WRONG])
@each_mode
def test_wrong_inputs(model, what, anyres, spoil, sentence):
    batch = inputs(TWO, anyres=anyres)
    spoil(batch)
    with fastervlm.prune(model, 5, anyres=anyres), pytest.raises(UserError, match=sentence) as error:
        getattr(model, what)(**batch)
    one_sentence(error.value)


@each_mode
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_inputs_of_the_other_processor_are_refused(model, size, anyres):
    """Whatever the size, and even where both cut a picture alike."""
    other = MODES[anyres == "native"]
    batch = inputs(ONE, [size], other)
    with fastervlm.prune(model, 5, anyres=anyres), pytest.raises(UserError) as error:
        model(**batch)
    one_sentence(error.value)


def test_a_model_that_feeds_its_cls_token_too_is_refused():
    with pytest.raises(UserError, match="vision_feature_select_strategy='full' also feeds") as error:
        fastervlm.prune(tiny.llava_next(vision_feature_select_strategy="full"), 5)
    one_sentence(error.value)


@pytest.mark.parametrize("anyres", MODES)
@torch.no_grad()
def test_offloaded_by_accelerate(anyres):
    """`image_newline` is a parameter of the inner model itself: outside of its forward it is on the meta device."""
    accelerate, model = pytest.importorskip("accelerate"), tiny.llava_next()
    batch = inputs(PROMPTS["ragged"], anyres=anyres)
    with fastervlm.prune(model, 5, anyres=anyres):
        logits, tokens = model(**batch).logits, model.generate(**batch, max_new_tokens=3, do_sample=False)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with fastervlm.prune(model, 5, anyres=anyres):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), tokens)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_saved_processor_of_the_paper_can_be_loaded(tmp_path):
    """AutoProcessor gives a bare tokenizer, without a word; and `load` fails on it deep inside."""
    tiny.llava_next().save_pretrained(tmp_path)
    processor_of("paper").save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), LlavaNextProcessor)
    for (_, processor), crops in ((fastervlm.load(tmp_path), 5), (fastervlm.load(tmp_path, anyres="paper"), 3)):
        batch = processor(images=noise([(40, 60)]), text="<image>", return_tensors="pt")
        assert batch["pixel_values"].shape[1] == crops


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_sizes": [[0, 32]]}, "height and the width"),
        ({"image_sizes": torch.tensor([[-5, 32]])}, "height and the width"),
        ({"image_sizes": [[32, 32, 3]]}, "height and the width"),
        ({"pixel_values": [torch.zeros(3, 3, 32, 32)]}, "return_tensors='pt'"),
        ({"pixel_values": torch.zeros(1, 3, 3, 16, 16)}, "reads crops of 32 x 32 pixels"),
        ({"image_index": "abc"}, "list of whole numbers"),
        ({"image_index": 0}, "list of whole numbers"),
        ({"image_index": [0.5]}, "list of whole numbers"),
    ],
)
def test_inputs_of_a_wrong_shape_get_a_sentence(model, changes, match):
    batch = inputs(ONE) | changes
    with fastervlm.prune(model, 3), pytest.raises(UserError, match=match) as caught:
        model.generate(**batch, max_new_tokens=1)
    one_sentence(caught.value)


@pytest.mark.parametrize("more", [-2, 1, 5])
@each_mode
@torch.no_grad()
def test_a_method_may_keep_more_or_less_than_asked(model, anyres, more):
    """It is as if it had been asked for that many."""
    batch = inputs(PROMPTS["ragged"], anyres=anyres)
    with fastervlm.prune(model, 3 + more, anyres=anyres):
        expected = model(**batch).logits

    def another(patches, k):
        return KeptTokens.top(patches.scores, min(k + more, patches.scores.shape[1]))

    with fastervlm.prune(model, 3, anyres=anyres, method=another):
        close(model(**batch).logits, expected)
