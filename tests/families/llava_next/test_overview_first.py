"""The overview decides which crops of a LLaVA-NeXT are encoded and what each keeps: against pictures pruned by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import AtMost, EncoderSchedule, Mass, Total, UserError, UserTypeError
from fastervlm.families.llava_next.crops import CropLayout
from fastervlm.families.llava_next.overview import in_proportion
from tests.support import tiny
from tests.support.checks import close, one_sentence
from tests.support.llava_next_cases import ONE, TWO, N, agree, each_mode
from tests.support.plain_next import SIZES, NextPlain, inputs, traces


def encoded(model) -> list[int]:
    """How many pictures or crops each call of the tower is given, from now on."""
    seen: list[int] = []
    model.model.vision_tower.encoder.layers[0].register_forward_hook(lambda *of: seen.append(len(of[2])))
    return seen


@each_mode
@pytest.mark.parametrize(
    ("budget", "read"), [("overview", None), *((budget, read) for budget in ("overview", "crop") for read in (1, 2, 3))]
)
@torch.no_grad()
def test_kept_tokens_and_logits_are_those_by_hand(model, budget, read, anyres):
    schedule = None if read is None else EncoderSchedule(crops=read)
    reference = NextPlain(model, 3, anyres, budget=budget, read=read)
    shares = set()
    for name in ("square", "4:3", "16:9", "panorama", "tower", "one canvas", "one pixel", "one wide", "huge"):
        batch = inputs(ONE, [SIZES[name]], anyres)
        for reference.keep in (1, 3, 8):
            (trace,) = agree(model, batch, reference, encoder_keep=schedule)
            shares.add(tuple(trace.mask.sum(dim=1).tolist()))
            if budget == "overview" and anyres == "paper":  # all patches of a crop take part, so that none is short of them
                assert int(trace.mask.sum()) == min(len(trace.mask) * reference.keep, reference.keep + (read or 4) * N)
    assert len(shares) > 8


@torch.no_grad()
def test_crops_that_keep_nothing_are_not_encoded(model):
    batch = inputs(TWO, [SIZES["largest canvas"], SIZES["1:3"]])
    crops = [len(trace.mask) - 1 for trace in _pruned(model, batch)]
    seen = encoded(model)
    for read in (1, 0.5, 1.0, 9):
        seen.clear()
        told = _pruned(model, batch, encoder_keep=EncoderSchedule(crops=read))
        stay = [min(read, count) if isinstance(read, int) else int(read * count + 0.5) for count in crops]
        assert seen == [2, sum(stay)]
        for trace, count in zip(told, stay, strict=True):
            assert trace.encoded.tolist() == trace.scores.any(dim=1).tolist() == trace.mask.any(dim=1).tolist()
            assert int(trace.encoded[1:].sum()) == count


def _pruned(model, batch, **settings) -> Any:
    with fastervlm.prune(model, 3, **settings) as handle:
        model(**batch)
    return traces(handle)


@pytest.mark.parametrize("settings", [{"encoder_keep": EncoderSchedule(crops=1.0)}, {"keep": N, "budget": "overview"}])
@torch.no_grad()
def test_where_all_crops_keep_what_they_had_nothing_changes(model, settings):
    batch, keep = inputs(TWO, [SIZES["4:3"], SIZES["one crop"]]), settings.get("keep", 3)
    with fastervlm.prune(model, keep):
        expected = model(**batch).logits
    with fastervlm.prune(model, **({"keep": keep} | settings)):
        close(model(**batch).logits, expected)


@torch.no_grad()
def test_answers_of_a_batch_are_those_of_single_pictures(model):
    sizes = [SIZES[name] for name in ("4:3", "panorama")]
    settings: dict[str, Any] = {"keep": 3, "budget": "overview", "encoder_keep": EncoderSchedule(crops=2)}
    with fastervlm.prune(model, **settings):
        together = inputs(["<image> x", "<image> x"], sizes)
        batch = model.generate(**together, max_new_tokens=3, do_sample=False)
        for row in range(2):
            rows = {name: tensor[row : row + 1] for name, tensor in together.items()}
            alone = model.generate(**rows, max_new_tokens=3, do_sample=False)
            assert alone[0, -3:].tolist() == batch[row, -3:].tolist()


@torch.no_grad()
def test_inside_the_tower_as_many_stay_as_the_most_that_a_crop_keeps():
    """Where crops share tokens, one may keep more than the budget of each, of patches that leave in front of block 1."""
    model = tiny.llava_next(vision_feature_layer=-1)
    schedule = EncoderSchedule([0], [5], crops=1)
    for name, most in (("largest canvas", 12), ("16:9", 8), ("1:3", 9)):  # the last two are partly padding, which leaves first
        batch = inputs(ONE, [SIZES[name]])
        with fastervlm.prune(model, 3, budget="overview", encoder_keep=schedule) as handle:
            model(**batch)
        trace: Any = handle.trace[0]
        assert sorted(trace.mask.sum(dim=1).tolist())[-2:] == [3, most]
        assert (trace.scores[trace.mask] > 0).all()
        assert (trace.scores > 0).sum(dim=1)[0] == 5


@torch.no_grad()
def test_remembered_pictures_and_other_budgets(model):
    batch = inputs(ONE, [SIZES["4:3"]])
    reference = NextPlain(model, 3, budget="overview")
    (trace,) = agree(model, batch, reference, keep=AtMost(99, 3), remember=2)
    with fastervlm.prune(model, AtMost(7, 3), budget="overview") as handle:
        model(**batch)
    assert int(handle.trace[0].mask.sum()) == 7 < int(trace.mask.sum())


def test_the_attention_on_a_crop_is_that_on_its_part_of_the_picture():
    """By pixels: each patch of the overview is painted onto the canvas, and counted where a crop lies."""
    torch.manual_seed(0)
    for size in ((64, 64), (30, 90), (80, 60), (48, 40)):
        layout = CropLayout.native(size, [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]], crop=32, side=4)
        scores = torch.rand(16)
        found = layout.attended(scores)
        painted = torch.zeros(len(found))
        fine = 24  # places along a pixel of the picture where it is looked at
        ys, xs = ((torch.arange(length * fine) + 0.5) / fine for length in size)
        on = scores.view(4, 4)[(ys * 4 / size[0]).long()][:, (xs * 4 / size[1]).long()] * 16 / (len(ys) * len(xs))
        for crop, (left, top, right, bottom) in enumerate(layout.regions()[1:].tolist()):
            painted[crop] = on[(ys >= top) & (ys < bottom)][:, (xs >= left) & (xs < right)].sum()
        torch.testing.assert_close(found, painted, rtol=2e-3, atol=2e-3)
        assert found.sum() == pytest.approx(float(scores.sum()))


@pytest.mark.parametrize(
    ("total", "shares", "limits", "expected"),
    [
        (10, [1.0, 1.0], [9, 9], [5, 5]),
        (10, [3.0, 1.0], [9, 9], [8, 2]),  # 7.5 and 2.5: of equal remainders the earlier
        (10, [3.0, 1.0], [6, 9], [6, 4]),  # what does not fit goes to the other
        (10, [8.0, 1.0, 1.0], [3, 5, 1], [3, 5, 1]),  # nor more than all
        (7, [0.0, 2.0, 5.0], [9, 9, 9], [0, 2, 5]),
        (7, [1.0, 0.0], [0, 9], [0, 0]),
        (5, [2.0, 1.0, 1.0], [9, 9, 9], [3, 1, 1]),
        (0, [1.0], [4], [0]),
        (4, [], [], []),
    ],
)
def test_tokens_in_proportion(total, shares, limits, expected):
    assert in_proportion(total, shares, limits) == expected


REFUSED: list[tuple[Any, dict[str, Any], type, str]] = [
    (tiny.llava_next, {"budget": "overview", "keep": Mass(0.9)}, UserError, "before the crops are scored"),
    (tiny.llava_next, {"budget": "overview", "keep": Total(20)}, UserError, "before the crops are scored"),
    (tiny.llava_next, {"budget": "image", "encoder_keep": EncoderSchedule(crops=2)}, UserError, "more tokens than"),
    (tiny.llava, {"budget": "overview"}, UserError, "means nothing to a Llava"),
    (tiny.video_llava, {"budget": "overview"}, UserError, "means nothing to a VideoLlava"),
    (tiny.llava, {"encoder_keep": EncoderSchedule(crops=2)}, UserError, "is for pictures of a LLaVA-NeXT"),
    (tiny.video_llava, {"encoder_keep": EncoderSchedule(crops=2)}, UserError, "is for pictures of a LLaVA-NeXT"),
]


@pytest.mark.parametrize(("make", "settings", "kind", "sentence"), REFUSED)
def test_where_it_is_not_possible_it_is_refused(make, settings, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        fastervlm.prune(make(), **({"keep": 5} | settings))
    one_sentence(caught.value)


@pytest.mark.parametrize("keep", [Mass(0.9), Total(20)])
def test_so_is_a_budget_of_one_call(model, keep):
    with fastervlm.prune(model, 3, budget="overview"), pytest.raises(UserError, match="before the crops are scored"):
        model(**inputs(ONE, [SIZES["4:3"]]), keep=keep)


@pytest.mark.parametrize(("crops", "kind"), [(0, UserError), (-1, UserError), (1.5, UserError), ("2", UserTypeError)])
def test_crops_are_a_count_or_a_fraction(crops, kind):
    with pytest.raises(kind, match=f"crops={crops!r} must be a count of crops") as caught:
        EncoderSchedule(crops=crops)
    one_sentence(caught.value)
    with pytest.raises(kind):
        replace(EncoderSchedule([1], [8]), crops=crops)
