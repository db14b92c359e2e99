"""Towers that pack pictures of many shapes: scores and features against the whole tower, its maps kept."""

import copy

import pytest
import torch
from transformers import CLIPVisionModel

from encoders import UserError, UserTypeError
from encoders.packed import PackedEncoder
from tests.support import packed_towers as towers
from tests.support.checks import one_sentence
from tests.support.packed_towers import FRAMES, GRID, TOWERS
from tests.support.plain import tiny

CASES = pytest.mark.parametrize(("build", "block"), TOWERS.values(), ids=TOWERS)


def chosen(part, count=5):
    """Some patches of each frame, in any order."""
    draw = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(part.places.shape[1], generator=draw)[:count] for _ in part.frames])


def close(ours, theirs, share=1e-6):
    """To a millionth of the largest, or another share of it; features of these towers go up to 11."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * max(1.0, float(theirs.abs().max())))


@CASES
@torch.no_grad()
def test_the_whole_sequence_is_the_towers_to_the_bit(build, block):
    tower, pixels = towers.make(build), towers.pixels()
    for dtype in (torch.float32, torch.bfloat16):
        tower.to(dtype)
        packed = PackedEncoder(tower)(pixels, GRID, states=(0, 2))
        told = tower(pixels.to(dtype), grid_thw=GRID, output_hidden_states=True)
        assert torch.equal(packed.whole(), told.last_hidden_state)
        assert torch.equal(packed.states[0], told.hidden_states[1])
        assert torch.equal(packed.states[2], told.hidden_states[3])


@CASES
@pytest.mark.parametrize("score", ["received", "norm"])
@pytest.mark.parametrize(
    ("dtype", "attention", "share"),
    [(torch.float32, "eager", 1e-6), (torch.float64, "sdpa", 1e-14)],
    ids=["float32", "float64"],
)
@torch.no_grad()
def test_kept_features_are_those_of_the_whole_tower(build, block, score, dtype, attention, share):
    """In float64 they are the same to fourteen digits, so that what differs in float32 is rounding: sums in another order.

    Eager attention of transformers rounds its weights to float32, and so cannot say that.
    """
    tower, pixels = towers.make(build).to(dtype), towers.pixels().to(dtype)
    whole = tower(pixels, grid_thw=GRID).last_hidden_state
    plain = copy.deepcopy(tower)
    plain.set_attn_implementation(attention)
    expected = plain(pixels, grid_thw=GRID).last_hidden_state
    packed = PackedEncoder(tower, score)(pixels, GRID)
    assert sorted(frame for part in packed.parts for frame in part.frames) == list(range(len(FRAMES)))
    for part in packed.parts:
        assert {FRAMES[frame] for frame in part.frames} == {part.patches.grid}
        index = chosen(part)
        close(part.patches.features(index), expected[part.places.gather(1, index)], share)
        assert torch.equal(part.patches.features(), whole[part.places])


@CASES
@torch.no_grad()
def test_patches_stand_in_raster_order(build, block):
    """What each row of the sequence is, its pixels tell: they are packed in blocks of 2 x 2."""
    tower = towers.make(build)
    numbers = [torch.arange(rows * columns).view(rows // 2, 2, columns // 2, 2) for rows, columns in FRAMES]
    packed = torch.cat([each.transpose(1, 2).flatten() for each in numbers])
    firsts = torch.tensor([0, *(rows * columns for rows, columns in FRAMES)]).cumsum(0)
    merged = PackedEncoder(tower)(towers.pixels(), GRID)
    positions = tower_positions(tower, merged)
    for part in merged.parts:
        for frame, places in zip(part.frames, part.places, strict=True):
            rows, columns = FRAMES[frame]
            assert sorted(places.tolist()) == list(range(int(firsts[frame]), int(firsts[frame]) + rows * columns))
            if positions is None:
                assert packed[places].tolist() == list(range(rows * columns))
            else:
                assert positions[places].tolist() == list(range(rows * columns))


def tower_positions(tower, merged):
    """Of a tower with windows, the raster number of each row by the library's own order; else None."""
    if not hasattr(tower, "fullatt_block_indexes"):
        return None
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(GRID, spatial_merge_size=2, window_size=28, patch_size=towers.PATCH)
    numbers = [torch.arange(rows * columns).view(rows // 2, 2, columns // 2, 2) for rows, columns in FRAMES]
    packed = torch.cat([each.transpose(1, 2).flatten() for each in numbers])
    return packed.view(-1, 4)[order].flatten()


@CASES
@torch.no_grad()
def test_received_is_the_column_mean_of_eager_maps(build, block):
    tower, pixels = towers.make(build), towers.pixels()
    packed = PackedEncoder(tower)(pixels, GRID)
    maps = towers.maps(tower, block, pixels)
    firsts = [0]
    for each in maps:
        firsts.append(firsts[-1] + each.shape[-1])
    for part in packed.parts:
        for frame, places, ours in zip(part.frames, part.places, part.patches.cls_attention, strict=True):
            close(ours, maps[frame].mean(dim=1)[:, places - firsts[frame]])
            assert ours.std() > 1e-4


@CASES
@torch.no_grad()
def test_norm_is_the_share_of_the_length(build, block):
    tower, pixels = towers.make(build), towers.pixels()
    whole = tower(pixels, grid_thw=GRID).last_hidden_state
    for part in PackedEncoder(tower, "norm")(pixels, GRID).parts:
        length = whole[part.places].square().sum(-1).sqrt()
        close(part.patches.scores, length / length.sum(1, keepdim=True))
        with pytest.raises(UserError, match="come without keys"):
            part.patches.keys()


@CASES
@torch.no_grad()
def test_a_call_equals_its_pictures(build, block):
    tower, pixels = towers.make(build), towers.pixels()
    together = PackedEncoder(tower)(pixels, GRID)
    found = {frame: (part, row) for part in together.parts for row, frame in enumerate(part.frames)}
    first = frame = 0
    for grid in GRID:
        alone = PackedEncoder(tower)(pixels[first : first + int(grid.prod())], grid[None])
        (part,) = alone.parts
        for own in range(int(grid[0])):
            shared, row = found[frame]
            close(part.patches.scores[own], shared.patches.scores[row])
            assert part.patches.image_key[own] == shared.patches.image_key[row]
            close(part.patches.features()[own], shared.patches.features()[row])
            frame += 1
        first += int(grid.prod())


def test_without_a_full_block_received_is_refused():
    tower = towers.make(lambda: towers.qwen2_5([]))
    with pytest.raises(UserError, match="sees windows only, so that no patch is compared with all; use score='norm'") as caught:
        PackedEncoder(tower)(towers.pixels(), GRID)
    one_sentence(caught.value)
    assert len(PackedEncoder(tower, "norm")(towers.pixels(), GRID).parts) == 3


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        ("cls", "has nothing to give score='cls'; its patches can be scored by score='received', .*, score='norm', "),
        ("pool", "has nothing to give score='pool'"),
        ("best", "score='best' is not known; choose one of cls, pool, received, norm"),
    ],
)
def test_a_score_that_it_cannot_give_is_refused(score, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        PackedEncoder(towers.make(towers.qwen2), score)
    one_sentence(caught.value)


def test_another_tower_is_refused():
    tower: CLIPVisionModel = tiny.llava().model.vision_tower
    with pytest.raises(UserTypeError, match="A CLIPVisionModel packs no pictures; towers that do are "):
        PackedEncoder(tower)


@pytest.mark.parametrize(
    ("count", "grid", "sentence"),
    [
        (10, GRID, r"pixel_values of shape \(10, 294\) do not hold the 320 patches of these grids"),
        (320, None, r"need their grids \(pictures, 3\) beside pixel_values"),
        (320, GRID[0], r"need their grids \(pictures, 3\) beside pixel_values"),
    ],
)
def test_patches_of_other_grids_are_refused(count, grid, sentence):
    pixels = torch.randn(count, towers.CHANNELS)
    with pytest.raises(UserError, match=sentence) as caught:
        PackedEncoder(towers.make(towers.qwen2))(pixels, grid)
    one_sentence(caught.value)


def test_cls_cannot_be_asked_for():
    part = PackedEncoder(towers.make(towers.qwen2))(towers.pixels(), GRID).parts[0]
    with pytest.raises(UserError, match=r"has no \[CLS\] token that could be kept"):
        part.patches.features(cls=True)
