"""The video checkpoint that ships: small, loads offline, answers questions about files, and is worth pruning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

import fastervlm
from fastervlm.embedded import VIDEO_MODEL
from playground import videobench
from playground.scenes import draw, questions
from video.frames import sample_frames

CLIPS = 4


@pytest.fixture(scope="module")
def tiny() -> Any:
    return VideoLlavaForConditionalGeneration.from_pretrained(VIDEO_MODEL).eval(), AutoProcessor.from_pretrained(VIDEO_MODEL)


def answers(tiny: Any, texts: list[str], **shown: Any) -> list[str]:
    """What the model says after prompts of its own template."""
    model, processor = tiny
    inputs = processor(text=texts, padding=True, return_tensors="pt", **shown)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def prompt(processor: Any, kind: str, text: str) -> str:
    content = [{"type": kind}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_it_is_small_and_holds_tensors_only(tiny: Any) -> None:
    files = sorted(path.name for path in VIDEO_MODEL.iterdir())
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in VIDEO_MODEL.iterdir()) < 15_000_000
    assert tiny[0].dtype == torch.float32


@pytest.mark.parametrize("frames", [1, 8, 16])
def test_the_processor_writes_a_placeholder_for_each_token(tiny: Any, frames: int) -> None:
    model, processor = tiny
    text = prompt(processor, "video", "Hi?")
    assert text == "USER: <video>\nHi? ASSISTANT:"
    clip = np.zeros((frames, 240, 320, 3), dtype=np.uint8)
    inputs = processor(videos=[clip], text=[text], return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, frames, 3, 128, 128)
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 257 * frames


def test_it_answers_about_files_and_pruning_by_cls_is_worth_it(tiny: Any, tmp_path: Path) -> None:
    """Few clips: `python -m playground.video_table` measures them all."""
    clips, texts, right = [], [], []
    for number in range(CLIPS):
        clip, asked = videobench.make(number)
        videobench.encode(tmp_path / "clip.mp4", clip.frames)
        clips += [sample_frames(tmp_path / "clip.mp4").pixels] * len(asked)
        texts += [prompt(tiny[1], "video", question) for _, question, _ in asked]
        right += [answer for _, _, answer in asked]

    def accuracy(count: int | None = None) -> float:
        given = answers(tiny, texts[:count], videos=clips[:count])
        return float(np.mean([one == two for one, two in zip(given, right, strict=False)]))

    every, found = accuracy(6), {}
    for method in ("cls", "random"):
        with fastervlm.prune(tiny[0], keep=26, method=method):
            found[method] = accuracy()
    assert every >= 0.75
    assert found["cls"] >= 0.75
    assert found["cls"] > found["random"] + 0.1


def test_it_answers_about_pictures_too(tiny: Any) -> None:
    pictures, texts, right = [], [], []
    for seed in range(6):
        rng = np.random.default_rng((5, seed))
        scene = draw(rng, 16)
        asked = [row for row in questions(rng, scene) if row[0] in ("number", "colour")][:2]
        pictures += [scene.image] * len(asked)
        texts += [prompt(tiny[1], "image", question) for _, question, _ in asked]
        right += [answer for _, _, answer in asked]
    given = answers(tiny, texts, images=pictures)
    assert np.mean([one == two for one, two in zip(given, right, strict=True)]) >= 0.75
