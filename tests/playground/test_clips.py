"""Clips and the recipe of the tiny Video-LLaVA: labels, questions, files, and what is trained on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VideoLlavaForConditionalGeneration

import fastervlm
from encoders import UserError
from fastervlm import embedded
from fastervlm.embedded import MODEL
from playground import video_task, videobench
from playground.clips import FRAMES, GRID, QUESTION_TYPES, Clip, clip_questions, draw_clip
from playground.scenes import CELL, IDENTITIES, KINDS, PATCH_COLOURS
from playground.tower import STD, pixels
from playground.video_task import ClipQuestions, PlacesTask, VideoTask, decoded, video_tokenizer
from tests.support.scene_labels import check_labels
from video.frames import sample_frames


@pytest.fixture(scope="module")
def llava() -> Any:
    return fastervlm.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(llava: Any) -> Any:
    return video_tokenizer(llava[1].tokenizer)


def shown(clip: Clip) -> list[dict[tuple[str, str, str], list[tuple[int, int]]]]:
    """Of each moment the cells by (kind, colour, identity), as the labels alone have it."""
    moments = []
    for scene in clip.scenes:
        found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for row, column in np.argwhere(scene.identity >= 0):
            at = row, column
            name = KINDS[scene.kind[at]], PATCH_COLOURS[scene.colour[at]], IDENTITIES[scene.identity[at]]
            found.setdefault(name, []).append((int(row), int(column)))
        moments.append(found)
    return moments


def looked_up(clip: Clip, question: str) -> list[str]:
    """All answers to a question that the labels allow."""
    words, moments = question.rstrip("?").replace(",", "").split(), shown(clip)

    def cells(name: str) -> list[tuple[int, int]]:
        return [cell for moment in moments for key, found in moment.items() if key[2] == name for cell in found]

    def names(place: int, **fixed: str) -> list[str]:
        where = {"kind": 0, "colour": 1, "name": 2}
        keys = {key for moment in moments for key in moment}
        return sorted({key[place] for key in keys if all(key[where[part]] == value for part, value in fixed.items())})

    if question.startswith("What number"):
        if "start" in words or "end" in words:
            moments = [moments[0 if "start" in words else -1]]
        return names(2, kind="box", colour=words[5])
    if question.startswith("What color"):
        return names(1, name=words[-1])
    if question.startswith("What does"):
        letters = [(at[1], key[2]) for key, found in moments[-1].items() if key[:2] == ("sign", words[3]) for at in found]
        return ["".join(letter for _, letter in sorted(letters)).lower()]
    if question.startswith("Is there"):
        return ["yes" if words[-2] in names(1, kind="shape", name=words[-1]) else "no"]
    if question.startswith("Is the"):
        return sorted({"left" if 2 * column < GRID - 1 else "right" for _, column in cells(words[2])})
    if question.startswith("Where"):
        (top, left), (bottom, right) = cells(words[3])[0], cells(words[3])[-1]
        return {(1, 0): ["down"], (-1, 0): ["up"], (0, 1): ["right"], (0, -1): ["left"]}[
            int(np.sign(bottom - top)), int(np.sign(right - left))
        ]
    begins = {
        name: min(i for i, moment in enumerate(moments) for key in moment if key[2] == name) for name in (words[4], words[7])
    }
    return [name for name, at in begins.items() if at == min(begins.values())]


@pytest.mark.parametrize("seed", range(25))
def test_each_answer_follows_from_the_labels_of_the_frames(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clip = draw_clip(rng)
    for kind, question, answer in clip_questions(rng, clip):
        assert kind in QUESTION_TYPES
        assert looked_up(clip, question) == [answer], question


@pytest.mark.parametrize(("grid", "moments"), [(8, 4), (8, 8), (16, 8)])
def test_frames_show_what_their_labels_say(grid: int, moments: int) -> None:
    clip = draw_clip(np.random.default_rng(grid + moments), grid, moments)
    assert clip.frames.shape == (moments, grid * CELL, grid * CELL, 3)
    for scene in clip.scenes:
        check_labels(scene)


def test_the_benchmark_asks_all_its_types() -> None:
    made = [videobench.make(number) for number in range(36)]
    asked = [row[0] for _, rows in made for row in rows]
    counts = {kind: asked.count(kind) for kind in videobench.TYPES}
    assert sum(counts.values()) == len(asked) == 108
    assert min(counts.values()) >= 6
    share = np.mean([(scene.identity >= 0).mean() for clip, _ in made for scene in clip.scenes])
    assert 0.025 < share < 0.06


def test_things_stay_come_go_and_move() -> None:
    things = [thing for seed in range(12) for thing in draw_clip(np.random.default_rng(seed)).things]
    there = {(thing.kind, thing.cells[0] is not None, thing.cells[-1] is not None) for thing in things}
    assert there == {
        *((kind, True, True) for kind in ("box", "shape", "sign")),
        *(("shape", True, False), ("shape", False, True), ("sign", False, True)),
    }
    still = [thing for thing in things if thing.kind == "shape" and thing.direction is None]
    assert any(None not in thing.cells for thing in still)
    assert all(len(set(thing.cells) - {None}) == 1 for thing in still)
    moving = [[cell for cell in thing.cells if cell] for thing in things if thing.direction]
    assert all(len(cells) == FRAMES and len(set(cells)) >= FRAMES // 2 for cells in moving)
    assert {len(set(thing.names)) for thing in things if thing.kind == "box"} == {1, 2}


def test_a_file_shows_its_moments_and_training_sees_the_same(tmp_path: Path, tokenizer: Any) -> None:
    clip = videobench.make(3)[0]
    videobench.encode(tmp_path / "a.mp4", clip.frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    found = sample_frames(tmp_path / "a.mp4", FRAMES)
    assert [index // videobench.HOLD for index in found.indices] == list(range(FRAMES))
    large = clip.frames.repeat(videobench.ENLARGED, axis=1).repeat(videobench.ENLARGED, axis=2)
    assert np.abs(found.pixels.astype(int) - large).mean() < 4
    processed = video_task.processor(tokenizer).video_processor(found.pixels, return_tensors="pt")["pixel_values_videos"][0]
    levels = 255 * torch.tensor(STD).view(3, 1, 1)
    frames = list(clip.frames)
    assert ((processed - decoded(frames)).abs() * levels).mean() < 5
    assert ((processed - pixels(frames)).abs() * levels).mean() < 8


def test_the_benchmark_has_the_layout_of_msvd_and_its_seed_decides_it(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        videobench.write(tmp_path / folder, 3)
    asked, answers = (json.loads((tmp_path / "one" / name).read_text()) for name in ("test_q.json", "test_a.json"))
    assert [row["question_id"] for row in asked] == [row["question_id"] for row in answers]
    assert len(asked) == 9
    assert {row["type"] for row in answers} <= set(videobench.TYPES)
    names = {row["video_name"] for row in asked}
    assert {path.name for path in (tmp_path / "one" / "videos").iterdir()} == {f"{name}.mp4" for name in names}
    for file in [path for path in (tmp_path / "one").rglob("*") if path.is_file()]:
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_the_tokenizer_knows_what_the_old_one_did_and_a_few_words_more(llava: Any, tokenizer: Any) -> None:
    old = llava[1].tokenizer
    assert tokenizer.convert_tokens_to_ids("<video>") == video_task.config().video_token_id == len(old)
    for text in ("What number is in the red box?", "Is there an orange heart?", "Überall 7 Äpfel."):
        assert tokenizer(text)["input_ids"] == old(text)["input_ids"]
    for word in video_task.NEW_WORDS:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    text = "Which came first, the star at the start or the heart at the end?"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_training_sees_the_visual_tokens_of_the_exported_model(llava: Any, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    places = PlacesTask(llava[0].model.vision_tower)
    task = VideoTask(llava[0], places).eval()
    video_task.export(task, tokenizer, tmp_path)
    model: Any = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    frames = torch.stack([decoded(list(draw_clip(np.random.default_rng(seed)).frames[:3])) for seed in (1, 2)])
    corner = torch.tensor([video_task.CORNER] * 2)
    batch = {"pixel_values": frames, "offset": corner, "kept": torch.arange(3 * 257).expand(2, -1)}
    single = {"pixel_values": frames[:, :1], "offset": corner, "kept": torch.arange(1, 257).expand(2, -1)}
    with torch.no_grad():
        clips = model.model.get_video_features(frames, return_dict=True).pooler_output.reshape(2, 3 * 257, -1)
        pictures = model.model.get_image_features(frames[:, 0], return_dict=True).pooler_output
        torch.testing.assert_close(task.visual(batch), clips, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(task.visual(single), pictures, rtol=1e-4, atol=1e-4)


def test_batches_hold_all_patches_or_as_many_of_each_clip(tokenizer: Any) -> None:
    data, seen = ClipQuestions(tokenizer), set()
    for step in range(24):
        batch = data.clips((0, step), 2, GRID // 2, 3, 0.3)
        kept = batch["kept"]
        places = 3 * (1 + 64)
        assert (kept.diff(dim=1) > 0).all()
        assert 0 <= int(kept.min()) <= int(kept.max()) < places
        cls = [int((row % 65 == 0).sum()) for row in kept]
        assert cls in ([0, 0], [3, 3])
        assert bool(batch["whole"]) == (kept.shape[1] - cls[0] == 3 * 64)
        frames = {tuple((row[row % 65 > 0] // 65).bincount(minlength=3).tolist()) for row in kept}
        seen.add((cls[0], bool(batch["whole"]), all(len(set(counts)) == 1 for counts in frames)))
        assert torch.equal(kept, data.clips((0, step), 2, GRID // 2, 3, 0.3)["kept"])
    assert {(c, w) for c, w, _ in seen} == {(0, True), (0, False), (3, True), (3, False)}
    assert any(not even for _, _, even in seen)
    picture = data.pictures((0, 1), 2, 1.0)
    assert picture["kept"].tolist() == [list(range(1, 257))] * 2


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "VIDEO_BENCHMARK", tmp_path / "video-mini")
    monkeypatch.setattr("fastervlm.reporting.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fastervlm\[video\]'"):
        embedded.embedded_video_benchmark()
    monkeypatch.setattr("sys.argv", ["videobench", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        videobench.main()
    assert "pip install 'fastervlm[video]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_questions_are_those_that_results_were_measured_with():
    """As of the pictures' benchmarks: drawn in another order they would be others."""
    asked = json.dumps([videobench.make(number)[1] for number in range(8)])
    assert hashlib.sha256(asked.encode()).hexdigest() == "af3a1cede97868d3eb3d19f8d97ffa5468740a190aa3bfdd2026e643aced71d4"
