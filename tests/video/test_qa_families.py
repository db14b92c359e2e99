"""Clips asked about with a model of every family that is shown clips, against plain loops over the stock model."""

import json
from functools import cache

import pytest
from transformers.video_utils import VideoMetadata

import fastervlm
from encoders import UserError
from fastervlm.eval.subject import Subject
from fastervlm.families.registry import FAMILIES
from tests.support.tiny_families import MODELS, save
from video.frames import sample_frames
from video.qa import ask, run, save_sheet

TYPES = [family.model_type for family in FAMILIES if "video" in family.kinds]
NEW = [name for name in TYPES if name != "video_llava"]
KEEP = 0.4


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return cache(lambda name: Subject(str(save(name, tmp_path_factory.mktemp(name) / f"tiny-{name}"))))


def test_every_family_is_under_test():
    assert set(TYPES) <= set(MODELS)


def by_hand(subject, path, question, num_frames=4, new=3):
    """What the model writes about a file, asked by its own processor; a film of ten frames a second is told as such."""
    model, processor = subject.loaded
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = sample_frames(path, num_frames)
    rate = frames.indices[-1] / frames.times[-1]
    spacing = (frames.indices[-1] - frames.indices[0]) / (num_frames - 1)
    told = VideoMetadata(total_num_frames=num_frames * spacing, fps=rate, frames_indices=list(frames.indices))  # type: ignore[arg-type]
    more = {"video_metadata": [told], "do_sample_frames": False, "input_data_format": "channels_last"}
    inputs = processor(text=[prompt], videos=[frames.pixels], return_tensors="pt", **more)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=new)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def written(chosen):
    return [json.loads(line) for line in chosen.answers_file.read_text().splitlines()]


@pytest.mark.parametrize("name", NEW)
def test_answers_are_those_of_plain_loops(subjects, settings, videos, name):
    subject = subjects(name)
    files = sorted(videos.iterdir(), key=lambda path: path.stem[-1])
    for keep in (None, 1.0, KEEP):
        told = {}
        for size in (1, 3):
            chosen = settings(keep=keep, method=None, batch_size=size, num_frames=4, name=f"{keep}-{size}")
            protocol, _ = run(subject, chosen)
            told[size] = [answer["text"] for answer in written(chosen)]
        assert told[1] == told[3]
        questions = [answer["prompt"] for answer in written(chosen)]
        if keep == KEEP:
            with fastervlm.prune(subject.model, KEEP):
                expected = [by_hand(subject, files[i // 2], question) for i, question in enumerate(questions)]
            assert protocol["mean_visual_tokens"] < protocol["mean_visual_tokens_unpruned"]
        else:
            expected = [by_hand(subject, files[i // 2], question) for i, question in enumerate(questions)]
        assert told[1] == expected
        assert len(set(expected)) > 1


@pytest.mark.parametrize("name", NEW)
def test_a_sheet_of_what_was_kept(subjects, settings, videos, tmp_path, name):
    """A row of the trace for each frame, two of which Qwen-VL joins."""
    path = sorted(videos.iterdir())[0]
    found = ask(subjects(name), settings(keep=KEEP, method=None, num_frames=4), path, "What?")
    assert found.trace is not None
    assert len(found.trace.mask) == len(found.frames) == 4
    joined = name.startswith("qwen")
    assert bool((found.trace.mask[0] == found.trace.mask[1]).all()) or not joined
    kept = int(found.trace.mask.sum()) // (2 if joined else 1)
    assert found.visual_tokens[0] == kept + found.trace.newlines
    save_sheet(found, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


REFUSED = {
    "internvl": ({}, "is no model for videos; give one such as a Video-LLaVA"),
    "llava_onevision": ({"keep_cls": True}, "for clips pruned in front of the language model of a Video-LLaVA"),
    "qwen2_vl": ({"method": "fastv"}, "cannot be pruned inside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_the_family_is_refused(subjects, settings, videos, name):
    changes, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        ask(subjects(name), settings(**({"method": None} | changes)), sorted(videos.iterdir())[0], "What?")
