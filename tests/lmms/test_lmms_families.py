"""The model for all families under lmms-eval: pictures and clips, each row as asked by hand through the stock processor."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

import fastervlm
from encoders import UserError
from fastervlm.families.registry import FAMILIES
from tests.support.clips import write_clip
from tests.support.lmms_requests import doc, generated, losses, picture
from tests.support.tiny_families import MODELS, save
from video.frames import sample_frames
from video.lmms.hf import Hf, HfChat

FRAMES = 4
TYPES = [family.model_type for family in FAMILIES]
CLIPS = [family.model_type for family in FAMILIES if "video" in family.kinds]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cache(lambda name: save(name, tmp_path_factory.mktemp(name) / "tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "0.mp4"
    rng = np.random.default_rng(0)
    write_clip(path, rng.integers(0, 255, (13, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(9, axis=2))
    return str(path)


def test_every_family_is_under_test():
    assert set(TYPES) <= set(MODELS)


def by_hand(folder, docs, keep):
    """Each document alone, by the chat template."""
    model, processor = fastervlm.load(folder)
    answers = []
    for found in docs:
        shown, clips = [one for one in found["shown"] if not isinstance(one, str)], []
        told: list[VideoMetadata] = []
        for path in (one for one in found["shown"] if isinstance(one, str)):
            frames = sample_frames(path, FRAMES)
            spread = (frames.indices[-1] - frames.indices[0]) / (FRAMES - 1)
            rate = frames.indices[-1] / frames.times[-1]
            clips.append(frames.pixels)
            told.append(VideoMetadata(round(FRAMES * spread), fps=rate, frames_indices=list(frames.indices)))
        kinds = ["image"] * len(shown) + ["video"] * len(clips)
        content: Any = [*({"type": kind} for kind in kinds), {"type": "text", "text": found["text"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        more = {"videos": clips, "video_metadata": told, "do_sample_frames": False} if clips else {}
        inputs = processor(images=[shown] if shown else None, text=[prompt], return_tensors="pt", **more)
        with fastervlm.prune(model, keep):
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)
        answers.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


NEW = [name for name in TYPES if name not in ("llava", "llava_next", "video_llava")]


@pytest.mark.parametrize("name", NEW)
def test_pictures_are_answered_as_by_hand(folders, name):
    """One picture, several of unequal shapes, none; by texts and by conversations."""
    docs = [doc("What is it?", picture(0, (40, 60))), doc("A?"), doc("And both?", picture(1, (30, 64)), picture(2, (33, 33)))]
    expected = by_hand(folders(name), docs, 0.5)
    assert len(set(expected)) > 1
    for kind in (Hf, HfChat):
        for size in (1, 3):
            lm = kind(pretrained=str(folders(name)), keep=0.5, batch_size=size, image_aspect_ratio=_as_it_is(name))
            assert generated(lm, docs) == expected


def _as_it_is(name):
    return "square" if name == "vipllava" else None


@pytest.mark.parametrize("name", [name for name in CLIPS if name in NEW])
def test_clips_are_answered_as_by_hand(folders, clip, name):
    docs = [doc("What happens here?", clip), doc("What is it?", picture(0)), doc("W?", clip)]
    expected = by_hand(folders(name), docs, 0.5)
    for kind in (Hf, HfChat):
        lm = kind(pretrained=str(folders(name)), keep=0.5, batch_size=2, num_frames=FRAMES)
        assert generated(lm, docs) == expected


def test_likelihoods_of_another_family(folders):
    docs = [doc("Is it so?", picture(0), target="yes"), doc("Is it so?", picture(0), target="no, never")]
    lm = Hf(pretrained=str(folders("qwen2_5_vl")), keep=1.0, batch_size=2)
    whole = Hf(pretrained=str(folders("qwen2_5_vl")), batch_size=1)
    for (loss, greedy), (other, same) in zip(losses(lm, docs), losses(whole, docs), strict=True):
        assert loss == pytest.approx(other, abs=1e-5)
        assert greedy is same


def test_a_clip_for_a_model_of_pictures_is_refused(folders, clip):
    lm = HfChat(pretrained=str(folders("internvl")), keep=0.5)
    with pytest.raises(UserError, match="no model for videos"):
        generated(lm, [doc("What?", clip)])


def test_pictures_that_nobody_shrinks_are_refused(folders):
    with pytest.raises(UserError, match="'resize'"):
        Hf(pretrained=str(folders("qwen2_5_vl")), keep=3, method="resize")
