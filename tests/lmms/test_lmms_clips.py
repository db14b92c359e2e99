"""Video-LLaVA for lmms-eval: clips and pictures in one batch, each as asked by hand."""

import numpy as np
import pytest
import torch

import fastervlm
from encoders import UserError
from tests.support.clips import write_clip
from tests.support.lmms_requests import USER, doc, generated, losses, picture, requests
from tests.support.tiny import video_llava, video_processor
from video.frames import sample_frames
from video.lmms.clips import VideoLlava, VideoLlavaChat

FRAMES = 3
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] != 'text' %}<{{ c['type'] }}>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    video_llava().save_pretrained(path)
    processor = video_processor()
    processor.chat_template = TEMPLATE
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of noise, with 4 frames a second."""
    rng, paths = np.random.default_rng(0), []
    for i in range(2):
        path = tmp_path_factory.mktemp("clips") / f"{i}.mp4"
        write_clip(path, rng.integers(0, 255, (9 + i, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2))
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def docs(clips):
    return [
        doc("What happens here?", clips[0]),
        doc("W?", clips[1]),
        doc("What is it?", picture(0)),
        doc("Nothing to see here."),
        doc("And both?", picture(1), clips[1]),
        doc("Two?", clips[1], clips[0]),
    ]


def by_hand(folder, docs, keep, start=None, end=None, targets=False):
    """Each row alone, by the processor of transformers."""
    model, processor = fastervlm.load(folder)
    answers = []
    for found in docs:
        pictures = [one for one in found["shown"] if not isinstance(one, str)]
        videos = [sample_frames(one, FRAMES, "uniform", start, end).pixels for one in found["shown"] if isinstance(one, str)]
        prompt = "<image>\n" * len(pictures) + "<video>\n" * len(videos) + found["text"]
        inputs = processor(
            images=pictures or None,
            videos=videos or None,
            text=USER.format(prompt) + found["target"],
            do_sample_frames=False,
            return_tensors="pt",
        )
        with torch.no_grad(), fastervlm.prune(model, keep or 1.0, keep_cls=keep is None):
            if targets:
                labels = inputs["input_ids"].clone()
                labels[:, : -len(found["target"])] = -100
                answers.append(float(model(**inputs, labels=labels).loss))
                continue
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(ids, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("keep", [3, None])
@pytest.mark.parametrize("kind", [VideoLlava, VideoLlavaChat])
def test_answers_are_those_of_each_row_alone(folder, docs, kind, keep, size):
    lm = kind(pretrained=str(folder), keep=keep, num_frames=FRAMES, batch_size=size)
    answers = generated(lm, docs)
    assert answers == by_hand(folder, docs, keep)
    assert len(set(answers)) > 3


def test_losses_are_those_of_each_continuation_alone(folder, docs):
    told = [found | {"target": target} for found, target in zip(docs, [" A", " Blue", " c", " no", " x y", " ."], strict=True)]
    found = losses(VideoLlava(pretrained=str(folder), keep=3, num_frames=FRAMES, batch_size=4), told)
    assert [loss for loss, _ in found] == pytest.approx(by_hand(folder, told, 3, targets=True), rel=1e-4)


def test_a_conversation_may_show_a_part_of_a_clip(folder, clips):
    lm = VideoLlavaChat(pretrained=str(folder), keep=3, num_frames=FRAMES)
    part = [{"type": "video", "url": clips[0], "start_time": 0.1, "end_time": 0.2}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": part}]
    asked = requests(lm, [doc("")], lambda _: ("", lambda _: turns, {"max_new_tokens": 4}))
    found = [doc("What?", clips[0])]
    assert lm.generate_until(asked) == by_hand(folder, found, 3, 0.1, 0.2) != by_hand(folder, found, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"anyres": "paper"}, "There is no model argument anyres; known are pretrained, .*, num_frames"),
        ({"image_aspect_ratio": "pad"}, "There is no model argument image_aspect_ratio"),
    ],
)
def test_arguments_that_have_no_sense_are_refused(folder, given, said):
    with pytest.raises(UserError, match=said):
        VideoLlava(pretrained=str(folder), **given)


def test_files_that_are_no_videos_fail_the_run(folder, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    for file, said in ((bad, "cannot be read as a video"), (tmp_path / "none.mp4", "There is no video")):
        with pytest.raises(UserError, match=said):
            generated(VideoLlava(pretrained=str(folder), num_frames=FRAMES), [doc("What?", str(file))])


def test_a_model_for_pictures_is_refused(tmp_path):
    from tests.support.tiny import save_llava

    with pytest.raises(UserError, match="is a llava model; use --model fastervlm_llava_hf"):
        VideoLlava(pretrained=str(save_llava(tmp_path / "tiny")))
