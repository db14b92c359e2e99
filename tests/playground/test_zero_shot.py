"""Zero-shot matching at a small scale: what is computed, and that [CLS] keeps what is looked for."""

import json
import sys

import pytest
import torch

from playground import zero_shot
from playground.scenes import COLOUR_NAMES, SHAPE_NAMES
from playground.tower import hidden_states, pixels
from playground.zero_shot import BAGS, FIT_SEED, PHRASES, TEST_SEED, TextTower, held_out, kept_patches, measure, scenes, shown


@pytest.fixture(scope="module")
def tower(loaded):
    return loaded[0].model.vision_tower


@pytest.fixture(scope="module")
def text(tower):
    pictures = scenes(FIT_SEED, 50)
    return TextTower(kept_patches(tower, pictures, 1.0), pictures)


@pytest.fixture(scope="module")
def tested():
    return scenes(TEST_SEED, 20)


def test_features_of_all_patches_are_the_towers_own(tower, tested):
    with torch.no_grad():
        whole = hidden_states(tower, pixels([scene.image for scene in tested]))[-2][:, 1:]
    torch.testing.assert_close(kept_patches(tower, tested, 1.0), whole, rtol=1e-4, atol=1e-4)


def test_cls_keeps_what_is_looked_for_and_random_does_not(tower, text, tested):
    truth = shown(tested)
    found = {
        (method, keep): measure(text.scores(kept_patches(tower, tested, keep, method)), truth)
        for method, keep in (("cls", 1.0), ("cls", 29), ("random", 29), ("grid", 29))
    }
    every = found["cls", 1.0]
    assert every["map"] > 90
    assert every["recall1"] > 85
    for name in ("map", "recall1"):
        assert found["cls", 29][name] > every[name] - 5
        assert max(found["random", 29][name], found["grid", 29][name]) < every[name] - 40


def test_a_phrase_is_never_fitted_on_itself():
    """Patches that show it may look as they will: its own vector stays, and so do those left out along with it."""
    pictures = scenes(FIT_SEED, 12)
    patches = torch.randn(12, 576, 16, generator=torch.Generator().manual_seed(0))
    here, phrases = zero_shot.shape_patches(pictures)
    shows = torch.zeros(12, 576, dtype=torch.bool)
    shows[here] = phrases == phrases[0]
    changed = patches.clone()
    changed[shows] += 5
    changed[~here] -= 5 * shows.sum() / (~here).sum()  # the mean patch stays where it was
    fold = next(fold for fold in range(zero_shot.FOLDS) if held_out(fold)[phrases[0]])
    moved = (TextTower(changed, pictures).vectors - TextTower(patches, pictures).vectors).abs().amax(dim=1)
    assert moved[held_out(fold)].max() < 1e-4
    assert moved[~held_out(fold)].max() > 0.1


def test_vectors_of_words_add_up():
    """Where a patch is the sum of a vector for its colour and one for its shape, a phrase never seen is found as well."""
    pictures = scenes(FIT_SEED, 50)
    here, phrases = zero_shot.shape_patches(pictures)
    words = torch.randn(len(zero_shot.WORDS), 16, generator=torch.Generator().manual_seed(0))
    patches = torch.zeros(50, 576, 16)
    patches[here] = BAGS[phrases] @ words
    text = TextTower(patches, pictures)
    assert (torch.cosine_similarity(text.vectors + text.mean, BAGS @ words) > 0.99).all()
    assert (text.scores(patches).gather(1, shown(pictures).int().argmax(dim=1, keepdim=True)) > 0.99).all()


def test_folds_leave_out_each_phrase_once_and_no_word():
    folds = torch.stack([held_out(fold) for fold in range(zero_shot.FOLDS)])
    assert (folds.sum(dim=0) == 1).all()
    for fold in folds:
        left = [phrase for phrase, out in zip(PHRASES, fold.tolist(), strict=True) if not out]
        assert {colour for colour, _ in left} == set(COLOUR_NAMES)
        assert {shape for _, shape in left} == set(SHAPE_NAMES)
    assert BAGS.sum(dim=1).tolist() == [2.0] * len(PHRASES)


def test_shape_patches_name_what_is_drawn(tested):
    here, phrases = zero_shot.shape_patches(tested)
    counts = here.sum(dim=1).tolist()
    for scene, mine in zip(tested, phrases.split(counts), strict=True):
        assert sorted(PHRASES[i] for i in mine.tolist()) == sorted(scene.shapes)


def test_the_measures_by_hand():
    """Two pictures; the first shows phrases 0 and 1, the second phrase 2."""
    truth = torch.zeros(2, 36, dtype=torch.bool)
    truth[0, :2] = truth[1, 2] = True
    scores = torch.zeros(2, 36)
    scores[0, :3] = torch.tensor([0.9, 0.5, 0.7])  # 0, 2, 1: precisions 1 and 2/3
    scores[1, :3] = torch.tensor([0.1, 0.2, 0.6])  # its own phrase first, but the first picture has more of it
    found = measure(scores, truth)
    assert found["first"] == 100
    assert found["map"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    assert found["recall1"] == 50
    assert found["recall5"] == 100


def test_the_command_writes_a_row_for_each_method_and_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zero_shot, "KEEP", (29,))
    monkeypatch.setattr(sys, "argv", ["zero_shot", "--pictures", "3", "--out-dir", str(tmp_path)])
    zero_shot.main()
    rows = json.loads((tmp_path / "zero-shot.json").read_text())["rows"]
    expected = [("all", 576), ("cls", 29), ("random", 29), ("grid", 29), ("chance", None)]
    assert [(row["method"], row["visual_token_num"]) for row in rows] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zero-shot.json", "zero-shot.png"]
    assert "recall@5" in capsys.readouterr().out
