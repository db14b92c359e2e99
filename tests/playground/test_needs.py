"""The crowded scenes: labels say what is drawn, and each answer follows from the labels alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

import fastervlm
from playground import minibench
from playground.needs import MOST, NEEDS, WORDS, draw
from playground.needs_task import (
    NeedsTask,
    NeedsTowerTask,
    ProjectorTask,
    build_tokenizer,
    only_ones,
    places,
    shown,
    tower_batch,
)
from playground.scenes import COLOUR_NAMES, GRID, IDENTITIES, KINDS, LETTER_NAMES, PATCH_COLOURS, PATTERNS, SHAPE_NAMES, Scene
from playground.tower import WIDTH, vision_config
from playground.video_task import coordinates
from tests.support.scene_labels import check_labels

Places = dict[tuple[str, str], list[tuple[int, int]]]


def shapes_of(scene: Scene) -> Places:
    """Where each thing stands, read off the labels."""
    found: Places = {}
    for row, column in np.argwhere(scene.kind == KINDS.index("shape")):
        thing = PATCH_COLOURS[scene.colour[row, column]], IDENTITIES[scene.identity[row, column]]
        found.setdefault(thing, []).append((int(row), int(column)))
    return found


def word_on(scene: Scene, board: str) -> str:
    """The letters of a board from left to right."""
    mask = (scene.kind == KINDS.index("sign")) & (scene.colour == PATCH_COLOURS.index(board))
    return "".join(IDENTITIES[scene.identity[row, column]] for row, column in np.argwhere(mask)).lower()


def beside(found: Places, thing: tuple[str, str]) -> tuple[str, str]:
    """The one thing in the next cell to the left or right."""
    (row, column) = found[thing][0]
    (there,) = [other for other, places in found.items() for place in places if place in ((row, column - 1), (row, column + 1))]
    return there


def answer_to(scene: Scene, need: str, question: str) -> str:
    """The answer to a question, found in the labels."""
    words, found = question.rstrip("?").replace(",", "").split(), shapes_of(scene)
    if need == "odd":
        ((colour, shape),) = [thing for thing, places in found.items() if len(places) == 1]
        return shape if "shape" in words else colour
    if need == "count":
        return str(len(found[words[2], words[3].removesuffix("s")]))
    if need == "wall":
        if "day" in words:
            return "day" if scene.image.mean() > 120 else "night"
        return scene.patterns[words[-2] == "lower"]
    if need == "text":
        return word_on(scene, words[3])
    if need == "relation":
        one, other = (words[-6], words[-5]), (words[-2], words[-1])
        axis = 0 if "higher" in words else 1
        return min((one, other), key=lambda thing: found[thing][0][axis])[1]
    if "next" in words:
        colour, shape = beside(found, (words[-2], words[-1]))
        return shape if "shape" in words else colour
    row, column = found[words[2], words[3]][0]
    if "left" in words:
        return "left" if column < GRID / 2 else "right"
    return "up" if row < GRID / 2 else "down"


@pytest.mark.parametrize("need", [name for name in NEEDS if name != "salient"])
@pytest.mark.parametrize("seed", range(6))
def test_each_answer_follows_from_the_labels(need, seed):
    scene, asked = draw(np.random.default_rng(seed), need)
    check_labels(scene)
    assert asked
    for kind, question, answer in asked:
        assert (kind, answer_to(scene, need, question)) == (need, answer), question


@pytest.mark.parametrize("need", NEEDS)
def test_small_scenes_have_questions_too(need):
    found = [draw(np.random.default_rng(seed), need, 8)[1] for seed in range(8)]
    assert sum(map(bool, found)) >= 6


def test_a_small_budget_cannot_keep_all_that_stands_out():
    for need in ("odd", "count", "wall", "text", "where", "relation"):
        crowded = [(draw(np.random.default_rng(seed), need)[0].identity >= 0).sum() for seed in range(8)]
        assert np.mean(crowded) > 25, need


def test_words_differ_in_one_letter_from_another():
    assert {letter for word in WORDS for letter in word} <= set(LETTER_NAMES)
    for word in WORDS:
        assert any(sum(a != b for a, b in zip(word, other, strict=True)) == 1 for other in WORDS), word


def test_every_answer_is_one_token():
    tokenizer = build_tokenizer()
    answers = [*map(str, range(1, MOST + 1)), *COLOUR_NAMES, *SHAPE_NAMES, *PATTERNS, "yes", "no", "day", "night"]
    answers += ["left", "right", "up", "down", *(word.lower() for word in WORDS)]
    assert [a for a in answers if len(tokenizer(f" {a}", add_special_tokens=False)["input_ids"]) > 1] == []


def test_the_tower_is_told_the_facts_of_all_needs():
    batch = tower_batch((0,), size=14, grid=12)
    assert batch["facts"].sum(dim=1).min() >= 1


def test_the_only_one_of_its_like_is_told():
    batch = tower_batch((1,), size=14, grid=12)
    shapes, only = only_ones(batch)
    for i in range(14):
        patches = torch.stack([batch[name][i].flatten() for name in ("kind", "colour", "identity")], dim=1).tolist()
        things = [tuple(patch) if patch[0] == KINDS.index("shape") else None for patch in patches]
        counts = Counter(things)
        assert shapes[i].tolist() == [thing is not None for thing in things]
        assert only[i].tolist() == [thing is not None and counts[thing] == 1 for thing in things]
    assert (shapes & ~only).any()
    assert only.any()


@torch.no_grad()
def test_the_tower_is_told_places(monkeypatch):
    """Twice the squared error, of patches of objects and of the others alike."""
    task, batch = NeedsTowerTask(), tower_batch((4,), size=4, grid=12)
    patches, objects = torch.randn(4, 144, WIDTH), batch["identity"].flatten(1) >= 0
    rows, columns = places(batch["offset"], 12)
    right = coordinates(GRID)[rows * GRID + columns].expand(4, -1, -1)
    wrong = right + torch.where(objects, 0.5, 0.3)[..., None]
    losses = []
    for said in (right, wrong):
        monkeypatch.setattr(task.place, "forward", lambda _, said=said: said)
        losses.append(task.dense(patches, batch)[0].item())
    assert losses[1] - losses[0] == pytest.approx(2 * (0.5**2 + 0.3**2), rel=1e-3)


@pytest.fixture(scope="module")
def begun():
    """A task that begins from the tiny LLaVA, its words, those of the tiny LLaVA, and the tiny LLaVA."""
    llava, processor = fastervlm.load("tiny-llava")
    words, known = build_tokenizer().get_vocab(), processor.tokenizer.get_vocab()
    return NeedsTask(CLIPVisionModel(vision_config()), llava, known, words), words, known, llava


def test_known_words_keep_their_embeddings(begun):
    task, words, known, llava = begun
    new, old = task.language.model.embed_tokens.weight, llava.model.language_model.embed_tokens.weight
    shared = set(words) & set(known)
    assert "Ġpurple" in shared
    for word in shared:
        assert torch.equal(new[words[word]], old[known[word]]), word
    assert new.shape[0] > len(words)
    assert torch.equal(
        task.language.model.layers[2].mlp.up_proj.weight, llava.model.language_model.layers[2].mlp.up_proj.weight
    )


@torch.no_grad()
def test_a_window_stands_for_a_whole_picture(begun):
    """A projector that says what it shall say of a window gives tokens that stand three patches apart."""
    task, _, _, llava = begun
    task.tower, task.projector = llava.model.vision_tower, llava.model.multi_modal_projector
    batch = tower_batch((2,), size=3, grid=GRID // 3)
    batch["kept"] = torch.tensor([[0, 9, 63]]).expand(3, -1)
    row, column = batch["offset"].tolist()
    told, here, whole = shown(llava, batch), [(0, 0), (1, 1), (7, 7)], [(1, 1), (4, 4), (22, 22)]
    for i, ((down, right), (below, across)) in enumerate(zip(here, whole, strict=True)):
        moved = task.offsets[below * GRID + across] - task.offsets[(row + down) * GRID + column + right]
        want = told[:, down * GRID // 3 + right] + moved
        assert torch.allclose(task.visual(batch)[:, i], want, atol=1e-4)


def test_the_projector_learns_from_the_tiny_llava(begun):
    task, _, _, llava = begun
    learning = ProjectorTask(task, llava)
    batch = tower_batch((3,), size=4, grid=GRID // 2)
    loss, parts = learning(batch)
    loss.backward()
    assert {name for name, _ in learning.named_parameters()} == {
        f"projector.{name}" for name, _ in task.projector.named_parameters()
    }
    assert min(parts.values()) > 0


def test_the_benchmark_asks_of_all_needs_alike(tmp_path):
    assert minibench.write(tmp_path, 14, "needs") == 28
    lines = (tmp_path / minibench.QUESTIONS).read_text().splitlines()
    counts = Counter(line.split('"category": "')[1].split('"')[0] for line in lines)
    assert counts == dict.fromkeys(NEEDS, 4)
