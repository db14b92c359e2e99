"""The demo's answers and numbers, against the model asked by hand."""

import re
import threading
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.demo import pictures
from fastervlm.demo.answers import has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.engine import SHORT, Engine
from fastervlm.eval.pictures import pad_to_square
from fastervlm.eval.subject import Subject
from fastervlm.generation.kv_cache import CACHE
from fastervlm.methods import METHODS
from fastervlm.reporting.speed import RUNS
from fastervlm.selection.method import traits
from tests.support import tiny


def last(states) -> Any:
    """The last of the states, when all is said."""
    return list(states)[-1]


def by_hand(engine, ask, keep=None, text=None):
    """The inputs of the model, its new text and its KV cache, without anything of the demo."""
    square = pad_to_square(Image.open(ask.picture).convert("RGB"), engine.processor.image_processor.image_mean)
    prompt = f"USER: <image>\n{ask.question if text is None else text}{SHORT * ask.short} ASSISTANT:"
    inputs = engine.processor(images=square, text=prompt, return_tensors="pt")
    pruning = nullcontext() if keep is None else fastervlm.prune(engine.model, keep, method=ask.pruner)
    with pruning:
        output = engine.model.generate(
            **inputs, do_sample=False, max_new_tokens=ask.max_new_tokens, return_dict_in_generate=True
        )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    return inputs, engine.processor.tokenizer.decode(new, skip_special_tokens=True).strip(), output[CACHE], len(new)


def bytes_of(lengths, new):
    """Of the tiny decoder's KV cache, from the prompt's length in each layer: keys and values, width 32, float32."""
    return sum(2 * 32 * 4 * (length + new - 1) for length in lengths)


@pytest.mark.parametrize("short", [True, False])
def test_both_answers_and_their_numbers(engine, asked, short):
    ask = asked(short=short)
    shown = last(answers(engine, ask))
    inputs, full, _, new = by_hand(engine, ask)
    length = inputs["input_ids"].shape[1]
    assert shown.full.text == full
    assert shown.full.figures.visual_tokens == 16
    assert shown.full.figures.cache_bytes == bytes_of([length, length], new)
    _, pruned, _, new = by_hand(engine, ask, keep=4)
    assert shown.pruned[0].reply.text == pruned
    assert shown.pruned[0].reply.figures.visual_tokens == 4
    assert shown.pruned[0].reply.figures.cache_bytes == bytes_of([length - 12, length - 12], new)
    for reply in (shown.full, shown.pruned[0].reply):
        assert len(reply.times) == RUNS
        assert all(0 < seconds < 60 for seconds in reply.times)
        assert reply.figures.rate > 0


def test_the_sweep_is_of_the_models_own_tokens(engine, asked):
    ask = asked()
    shown = last(answers(engine, ask))
    assert [reply.keep for reply in shown.pruned[0].sweep] == engine.budgets == [16, 8, 4, 2, 1]
    assert [reply.text for reply in shown.pruned[0].sweep] == [by_hand(engine, ask, keep)[1] for keep in (None, 8, 4, 2, 1)]
    assert [reply.figures.visual_tokens for reply in shown.pruned[0].sweep] == [16, 8, 4, 2, 1]
    assert len({reply.text for reply in shown.pruned[0].sweep}) > 1


def test_what_was_kept_is_drawn(engine, asked):
    kept = last(answers(engine, asked(), more=False)).pruned[0].drawn.layers
    with fastervlm.prune(engine.model, 4) as handle:
        engine.model.generate(**by_hand(engine, asked())[0], max_new_tokens=1)
        trace: Any = handle.trace[0]
        mask = trace.mask
    assert kept.picture.shape == (480, 480, 3)
    assert torch.equal(torch.from_numpy(kept.kept[0].copy())[60::120, 60::120].bool(), mask)


def test_attention_of_the_last_token(engine, asked):
    ask = asked()
    attention = last(answers(engine, ask)).attention
    inputs = by_hand(engine, ask)[0]
    backend = engine.model.config._attn_implementation
    engine.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = engine.model(**inputs, output_attentions=True).attentions
    engine.model.set_attn_implementation(backend)
    visual = (inputs["input_ids"][0] == 3).nonzero().flatten()
    for layer, shares in enumerate(attention.shares):
        row = maps[layer][0, :, -1].mean(dim=0)
        whole = row[: visual[0]].sum(), row[visual].sum(), row[visual[-1] + 1 :].sum()
        torch.testing.assert_close(torch.tensor(shares), torch.stack(whole), atol=1e-6, rtol=1e-5)
        brightest = divmod(int(row[visual].argmax()), 4)
        scores = attention.maps[layer].scores
        assert scores[60 + 120 * brightest[0], 60 + 120 * brightest[1]] == scores.max()


def test_two_methods_answer_as_each_does_alone(engine, asked):
    both = last(answers(engine, asked(method="cls", beside="fastv", layer=1)))
    for each, alone in zip(both.pruned, (asked(method="cls"), asked(method="fastv", layer=1)), strict=True):
        one = last(answers(engine, alone)).pruned[0]
        assert (each.method, each.reply.text, each.reply.figures.cache_bytes) == (
            alone.method,
            one.reply.text,
            one.reply.figures.cache_bytes,
        )
        assert each.drawn.patches == one.drawn.patches
        assert [reply.text for reply in each.sweep] == [reply.text for reply in one.sweep]
        assert len(each.reply.times) == len(both.full.times) == RUNS
    with pytest.raises(UserError, match="The two methods are the same"):
        answers(engine, asked(method="cls", beside="cls"))


def test_the_models_take_turns_to_be_timed(engine, asked, monkeypatch):
    """Each run of all models is followed by one in the opposite order, and each time is put down to its own model."""
    ran = []
    monkeypatch.setattr(engine, "seconds", lambda ask, keep: ran.append((ask.method, keep)) or len(ran))
    shown = last(answers(engine, asked(beside="vispruner"), more=False))
    there = [("cls", None), ("cls", 4), ("vispruner", 4)]
    assert ran == [model for run in range(RUNS) for model in (there if run % 2 == 0 else there[::-1])]
    times = [reply.times for reply in (shown.full, *(each.reply for each in shown.pruned))]
    for run in range(RUNS):
        first = 3 * run + 1
        assert [each[run] for each in times] == (
            [first, first + 1, first + 2] if run % 2 == 0 else [first + 2, first + 1, first]
        )


def test_scores_and_ranks_of_patches(engine, asked):
    """Against the trace of the model asked by hand: what was kept are the patches of the first ranks."""
    ((patches,),) = last(answers(engine, asked(), more=False)).pruned[0].drawn.patches
    with fastervlm.prune(engine.model, 4) as handle:
        engine.model.generate(**by_hand(engine, asked())[0], max_new_tokens=1)
        trace: Any = handle.trace[0]
    assert (patches.box, patches.grid, patches.ranked) == ((0, 0, 1, 1), (4, 4), 16)
    assert list(patches.scores) == trace.scores.tolist()
    assert list(patches.kept) == trace.index.tolist()
    by_rank = [i for _, i in sorted((-score, i) for i, score in enumerate(trace.scores.tolist()))]
    assert [by_rank.index(i) + 1 for i in range(16)] == list(patches.ranks)
    assert sorted(by_rank[:4]) == list(patches.kept)


def test_what_cannot_be_drawn_is_said(engine, asked, monkeypatch):
    def fail(*_):
        raise UserError("This cannot be drawn.")

    monkeypatch.setattr(engine, "drawn", fail)
    shown = last(answers(engine, asked(), more=False))
    assert "This cannot be drawn." in pictures.kept(shown.pruned)
    assert len(shown.full.times) == RUNS


@pytest.mark.parametrize("method", METHODS)
def test_every_method(engine, asked, method):
    shown = last(answers(engine, asked(method=method, layer=1 if has_layer(method) else None), more=False))
    assert shown.pruned[0].reply.figures.visual_tokens == 4
    share = 1 if traits(METHODS[method]).resizes else 4 / 16  # of a smaller picture all patches are kept
    assert shown.pruned[0].drawn.layers.kept[0].mean() == pytest.approx(share)
    assert shown.pruned[0].sweep == ()
    assert engine.model.__dict__.keys() & {"generate", "forward", "_fastervlm_host"} == set()


def test_the_layer_is_the_one_that_was_chosen(engine, asked):
    sizes = [last(answers(engine, asked(method="fastv", layer=layer), more=False)).pruned[0].reply.figures for layer in (0, 1)]
    ask = asked(method="fastv")
    length = by_hand(engine, ask)[0]["input_ids"].shape[1]
    new = [by_hand(engine, asked(method="fastv", layer=layer), 4)[3] for layer in (0, 1)]
    assert sizes[0].cache_bytes == bytes_of([length - 12, length - 12], new[0])
    assert sizes[1].cache_bytes == bytes_of([length, length - 12], new[1])


@pytest.mark.parametrize("method", ["cls", "fastv"])
def test_crops(tmp_path, picture, asked, method):
    tiny.llava_next().save_pretrained(tmp_path / "next")
    tiny.next_processor().save_pretrained(tmp_path / "next")
    engine = Engine(Subject(str(tmp_path / "next")))
    shown = last(
        answers(engine, asked(picture=picture("wide.png", (60, 30)), method=method, layer=1 if method == "fastv" else None))
    )
    assert engine.tokens == 16
    assert len(shown.pruned[0].drawn.layers.kept) == 2
    captions = re.findall(r"<figcaption>(\d+) tokens kept of the (\w+)<", pictures.kept(shown.pruned))
    assert [part for _, part in captions] == ["overview", "crops"]
    overview, crops = (int(count) for count, _ in captions)
    assert overview == pytest.approx(16 * shown.pruned[0].drawn.layers.kept[0].mean())
    assert (overview, crops) == (4, 8) if method == "cls" else overview + crops < shown.pruned[0].reply.figures.visual_tokens
    assert shown.full.figures.visual_tokens > 2 * 16
    assert shown.pruned[0].reply.figures.visual_tokens < shown.full.figures.visual_tokens / 2
    assert len(shown.attention.maps) == 2
    whole, parts = shown.pruned[0].drawn.patches
    assert [len(whole), len(parts)] == [1, 2]
    assert [each.box for each in parts] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert {each.ranked for each in parts} == {16 if method == "cls" else 48}
    assert (len(whole[0].kept), sum(len(each.kept) for each in parts)) == (overview, crops)


def test_pictures_without_a_common_count_are_pruned_by_percent(engine, asked, monkeypatch):
    """Of a family that shows each picture in as many tokens as its shape asks for."""
    fresh = Engine(engine.subject)

    monkeypatch.setattr(type(engine.subject), "tokens_of", lambda *_: None)
    assert (fresh.count, fresh.tokens, fresh.budgets) == (None, 100, [100, 50, 25, 10, 5])
    assert fresh.amount(25) == "25 %"
    shown = last(answers(fresh, asked(keep=25)))
    assert shown.pruned[0].reply.text == by_hand(engine, asked(), keep=4)[1]
    assert [reply.figures.visual_tokens for reply in shown.pruned[0].sweep] == [16, 8, 4, 2, 1]
    assert [reply.keep for reply in shown.pruned[0].sweep] == [100, 50, 25, 10, 5]


def test_placeholders_in_a_question_are_no_pictures(engine, asked):
    ask = asked(question="  What <image> is it? <image>")
    assert last(answers(engine, ask, more=False)).full.text == by_hand(engine, ask, text="What  is it?")[1]


@pytest.mark.parametrize("question", ["", "  \n ", "<image>"])
def test_nothing_asked(engine, asked, question):
    with pytest.raises(UserError, match=r"^Type a question first\.$"):
        answers(engine, asked(question=question))


def test_text_comes_while_it_is_written(engine, asked):
    """Each state adds to the one before, the full model's first."""
    states = list(answers(engine, asked(max_new_tokens=40, short=False), more=False))
    full = [state.full.text for state in states if state.full.figures is None]
    assert len({text for text in full if text}) > 1
    assert all(later.startswith(earlier.rstrip("�")) for earlier, later in pairwise(full))
    assert all(state.full.figures for state in states if state.pruned[0].reply.text)


def test_two_users_at_once_get_their_own_answers(engine, picture, asked):
    asks = [asked(picture=picture(f"{i}.png"), question=f"What is {i}?", keep=2 + i % 3) for i in range(6)]
    alone = [last(answers(engine, ask, more=False)) for ask in asks]
    found = {}

    def user(mine):
        for i in mine:
            found[i] = last(answers(engine, asks[i], more=False))

    users = [threading.Thread(target=user, args=(range(start, 6, 2),)) for start in (0, 1)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(60)
    for i, before in enumerate(alone):
        (mine,), (then,) = found[i].pruned, before.pruned
        assert (found[i].full.text, mine.reply.text) == (before.full.text, then.reply.text)
        assert mine.reply.keep == asks[i].keep
        assert (mine.drawn.layers.picture == then.drawn.layers.picture).all()


def test_who_goes_away_stops_the_model(engine, asked):
    states = answers(engine, asked(max_new_tokens=2000, short=False))
    while not next(states).full.text:
        pass
    states.close()
    assert engine.lock.acquire(timeout=30)
    engine.lock.release()
    assert last(answers(engine, asked(), more=False)).pruned[0].reply.figures


def test_too_little_memory_is_one_sentence(engine, asked, monkeypatch):
    def fail(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setitem(engine.model.__dict__, "generate", fail)
    with pytest.raises(UserError, match="too little memory"):
        last(answers(engine, asked()))
    assert not engine.lock.locked()
