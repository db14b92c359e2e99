"""Video question answering: one file, and benchmarks through the runner."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.eval.answers import Journal, journal_file, protocol_file
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate
from fastervlm.eval.runs import BENCHMARK, CELL, MODEL, SETTINGS
from fastervlm.eval.settings import identity_of
from fastervlm.eval.subject import Subject
from fastervlm.inllm.trace import TokenTrace
from tests.support.tiny import video_processor
from video.frames import Frames, sample_frames
from video.qa import ask, predictions_file, run, save_sheet
from video.sheet import contact_sheet, in_llm_trace, time_of

N = 16


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(subject, settings, path, question="What?") -> Any:
    return ask(subject, settings, path, question)


def stock(subject, path, question, frames=3):
    """What `generate` and the processor alone answer."""
    clip = sample_frames(path, frames).pixels
    inputs = video_processor()(
        text=f"USER: <video>\n{question} ASSISTANT:", videos=[clip], input_data_format="channels_last", return_tensors="pt"
    )
    ids = subject.model.generate(**inputs, do_sample=False, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    return video_processor().batch_decode(ids, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize(
    "changes", [{"keep": None}, {"keep": N, "keep_cls": True}, {"keep": 1.0, "keep_cls": True, "budget": "clip"}]
)
def test_with_all_tokens_the_answers_are_the_stock_models(subject, settings, bench, videos, changes):
    chosen = settings(**changes)
    protocol, _ = run(subject, chosen)
    assert protocol["mean_visual_tokens"] == protocol["mean_visual_tokens_unpruned"] == 3 * (N + 1)
    files = sorted(videos.iterdir(), key=lambda path: path.stem[-1])
    answers = lines(chosen.answers_file)
    assert len({answer["text"] for answer in answers}) > 3, "the tiny model must tell clips apart"
    for i, answer in enumerate(answers):
        assert answer["text"] == stock(subject, files[i // 2], answer["prompt"])


@pytest.mark.parametrize("keep", [None, N])
def test_attention_over_time(settings, videos, timed_model, keep):
    """A tower that reads whole clips, of which some are asked about twice: all tokens give the model's own answers."""
    subject = Subject(str(timed_model))
    assert type(subject.model).__name__ == "TemporalVideoLlava"
    chosen = settings(keep=keep, keep_cls=True, batch_size=3)
    run(subject, chosen)
    files = sorted(videos.iterdir(), key=lambda path: path.stem[-1])
    for i, answer in enumerate(lines(chosen.answers_file)):
        assert answer["text"] == stock(subject, files[i // 2], answer["prompt"])


@pytest.mark.parametrize("changes", [{}, {"keep": None}, {"budget": "clip", "conv_mode": "llava_v1"}])
def test_every_batch_size_gives_the_same_bytes(subject, settings, changes):
    written = []
    for size in (1, 5):
        chosen = settings(batch_size=size, name=f"b{size}", **changes)
        run(subject, chosen)
        written.append(chosen.answers_file.read_bytes())
    assert written[0] == written[1]


def test_a_clip_asked_about_twice_is_encoded_once_in_a_batch(subject, settings):
    for keep in (3, None):
        encoded = []
        tower = subject.model.model.video_tower
        hook = tower.embeddings.register_forward_hook(lambda *call: encoded.append(len(call[-1])))  # noqa: B023
        run(subject, settings(keep=keep, batch_size=8, name=f"k{keep}"))
        hook.remove()
        assert encoded == [12, 12]  # four clips of three frames: the warm-up, and the run


def test_protocol_and_predictions(subject, settings, bench, videos):
    chosen = settings()
    protocol, score = run(subject, chosen)
    assert score is not None
    assert protocol == json.loads(protocol_file(chosen.answers_file).read_text())
    expected = {
        "task": "video-qa",
        "model": "tiny",
        "method": "cls",
        "visual_token_num": 3,
        "mean_visual_tokens": 9,
        "mean_visual_tokens_unpruned": 3 * (N + 1),
        "num_frames": 3,
        "strategy": "uniform",
        "keep_cls": False,
        "budget_of": "frame",
        "prompt_template": "USER: <video>\n{text} ASSISTANT:",
        "video_dir": str(videos.resolve()),
        "questions": 8,
        "answered": 8,
        "failures": [],
        "score": score.summary(),
    }
    assert {key: protocol[key] for key in expected} == expected
    questions, right = (json.loads(bench[name].read_text()) for name in ("question_file", "annotation_file"))
    answers = lines(chosen.answers_file)
    for line, question, truth, answer in zip(
        lines(predictions_file(chosen.answers_file)), questions, right, answers, strict=True
    ):
        assert line == {
            "id": question["question_id"],
            "question": question["question"],
            "answer": truth["answer"],
            "pred": answer["text"],
            "type": truth["type"],
        }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 4}, "num_frames is 3 there and 4 now"),
        ({"strategy": "keyframes"}, "strategy is 'uniform' there"),
        ({"keep_cls": True}, "keep_cls is False there"),
        ({"budget": "clip"}, "budget_of is 'frame' there"),
        ({"blind": True}, "blind is False there"),
    ],
)
def test_answers_of_another_run_are_never_mixed(subject, settings, changes, message):
    run(subject, settings())
    with pytest.raises(UserError, match=message):
        run(subject, settings(**changes))


def test_settings_of_clips_change_the_answers(subject, settings):
    """What the identity keeps apart is passed on to frames and pruning."""
    texts = {}
    for name, changes in {
        "plain": {},
        "frames": {"num_frames": 5},
        "cls": {"keep_cls": True},
        "clip": {"budget": "clip"},
        "blind": {"blind": True},
        "random": {"method": "random"},
    }.items():
        chosen = settings(name=name, keep=1, limit=4, **changes)
        protocol, _ = run(subject, chosen)
        texts[name] = [answer["text"] for answer in lines(chosen.answers_file)], protocol["mean_visual_tokens"]
    assert {name: tokens for name, (_, tokens) in texts.items()} == {**dict.fromkeys(texts, 3), "frames": 5, "cls": 6}
    assert len({str(answers) for answers, _ in texts.values()}) == len(texts)


@pytest.mark.parametrize("strategy", ["fps", "keyframes"])
def test_clips_of_unequal_length_are_asked_one_at_a_time(subject, settings, strategy):
    protocol, _ = run(subject, settings(strategy=strategy, num_frames=4))
    assert protocol["answered"] == 8
    assert protocol["batch_size"] == 1
    assert protocol["mean_visual_tokens"] < 12


def test_sampling_is_repeatable_by_seed(subject, settings):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        chosen = settings(temperature=2.0, seed=seed, name=name, limit=2)
        run(subject, chosen)
        texts.append([answer["text"] for answer in lines(chosen.answers_file)])
    assert texts[0] == texts[1] != texts[2]


@pytest.fixture
def damaged(tmp_path, videos):
    """The folder with one clip cut short, one that is no video, and one that is missing."""
    folder = tmp_path / "damaged"
    shutil.copytree(videos, folder)
    clip = folder / "clip_0.mp4"
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    (folder / "clip_1.avi").write_bytes(b"no video")
    (folder / "v_clip_2.mp4").unlink()
    return folder


def test_broken_videos_are_named_and_counted_and_the_run_goes_on(subject, settings, damaged, videos):
    chosen = settings(image_folder=damaged)
    protocol, _ = run(subject, chosen)
    assert (protocol["answered"], protocol["failed"]) == (2, 6)
    assert [failure["question_id"] for failure in protocol["failures"]] == [f"q{i}" for i in range(6)]
    for failure, name in zip(protocol["failures"][::2], ("clip_0.mp4", "clip_1.avi", "clip_2.mp4"), strict=True):
        assert str(damaged / name) in failure["reason"]
    assert [line["id"] for line in lines(predictions_file(chosen.answers_file))] == ["q6", "q7"]
    shutil.copy(videos / "clip_1.avi", damaged)
    protocol, _ = run(subject, chosen)
    assert (protocol["answered"], protocol["failed"]) == (4, 4)
    whole = settings(name="whole")
    run(subject, whole)
    assert [a["text"] for a in lines(chosen.answers_file)] == [
        a["text"] for a in lines(whole.answers_file)[2:4] + lines(whole.answers_file)[6:]
    ]


def test_interrupted_run_goes_on(subject, settings, monkeypatch):
    whole, chosen = settings(name="whole"), settings()
    run(subject, whole)
    written = []

    def add(self, entries):
        if written:
            raise KeyboardInterrupt
        written.append(real(self, entries))

    real = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run(subject, chosen)
    assert len(journal_file(chosen.answers_file).read_text().splitlines()) == 5
    run(subject, chosen)
    assert chosen.answers_file.read_bytes() == whole.answers_file.read_bytes()
    assert predictions_file(chosen.answers_file).read_bytes() == predictions_file(whole.answers_file).read_bytes()


def test_one_file(subject, settings, videos):
    clip = videos / "clip_3.mkv"
    found = asked(subject, settings(keep=None), clip, "What is it?")
    assert (found.text, found.trace) == (stock(subject, clip, "What is it?"), None)
    assert found.visual_tokens == (3 * (N + 1), 3 * (N + 1))
    found = asked(subject, settings(), clip, "What is it?")
    assert found.visual_tokens == (9, 3 * (N + 1))
    assert found.trace.mask.sum(dim=1).tolist() == [3, 3, 3]
    assert found.frames.times == sample_frames(clip, 3).times
    for name in ("<video>", "<image>"):
        with pytest.raises(UserError, match=name):
            ask(subject, settings(), clip, f"What is {name}?")


def test_one_file_equals_pruning_by_hand(subject, settings, videos):
    clip = videos / "clip_3.mkv"
    found = asked(subject, settings(budget="clip", keep_cls=True), clip, "What is it?")
    with fastervlm.prune(subject.model, 3, budget="clip", keep_cls=True) as handle:
        assert found.text == stock(subject, clip, "What is it?")
        assert torch.equal(handle.trace[0].mask, found.trace.mask)


def test_a_part_of_a_file(subject, settings, videos):
    chosen = settings()
    chosen = replace(chosen, medium=replace(chosen.medium, start=0.5, end=1.0))
    times = asked(subject, chosen, videos / "clip_3.mkv").frames.times
    assert times[0] >= 0.5
    assert times[-1] <= 1.0


def test_frames_too_narrow_to_be_cropped_are_refused(subject, settings, tmp_path, monkeypatch):
    from video.frames import Frames

    chosen = settings()
    prepare = chosen.medium.preparation(subject, chosen)
    strip = Frames(torch.zeros(2, 4, 404, 3, dtype=torch.uint8).numpy(), (0.0, 1.0), (0, 1))
    with pytest.raises(UserError, match=r"frames of .*x.mp4 are 404 x 4, too narrow"):
        prepare.pixels(tmp_path / "x.mp4", strip, subject.processor)


def test_in_llm_pruning_answers_and_draws(subject, settings, videos, tmp_path):
    chosen = settings(method=fastervlm.FastV(layer=1), keep=5)
    protocol, _ = run(subject, chosen)
    assert protocol["visual_token_num"] == "5 of all frames"
    assert protocol["mean_visual_tokens"] == 5
    found = asked(subject, chosen, videos / "clip_0.mp4")
    assert found.trace.mask.shape == (3, N)
    assert 0 < found.trace.mask.sum() <= 5
    save_sheet(found, tmp_path / "sheet.png")


def test_tokens_kept_inside_the_language_model_are_drawn_where_their_patches_are():
    """Two frames of four patches, each behind its [CLS]."""
    trace = in_llm_trace(TokenTrace(torch.linspace(-1, 8, 10), torch.tensor([0, 1, 4, 5, 9]), 1), (2, 2), 2)
    assert trace.mask.tolist() == [[True, False, False, True], [False, False, False, True]]
    assert trace.scores.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]


def test_a_model_without_videos_is_refused(settings, tmp_path):
    from tests.support.tiny import save_llava

    pictures = Subject(str(save_llava(tmp_path / "pictures")))
    with pytest.raises(UserError, match="is no model for videos"):
        evaluate(pictures, settings())


def test_contact_sheet_shows_frames_kept_patches_and_times(subject, settings, videos, tmp_path):
    found = asked(subject, settings(num_frames=5), videos / "clip_3.mkv")
    save_sheet(found, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (4 * 264 + 8, 2 * 288 + 8)
    plain = contact_sheet(found.frames, None)
    assert plain.size == sheet.size
    for i, mask in enumerate(found.trace.mask):
        left, top = 8 + i % 4 * 264, 8 + i // 4 * 288
        cell, whole = (picture.crop((left, top, left + 256, top + 256)).convert("L") for picture in (sheet, plain))
        for patch, kept in enumerate(mask.tolist()):
            left, top = 64 * (patch % 4), 64 * (patch // 4)
            bright = [np.asarray(x)[top : top + 64, left : left + 64].mean() for x in (cell, whole)]
            assert (bright[0] > 0.8 * bright[1]) == kept or bright[1] < 60
    captions = contact_sheet(replace(found.frames, times=(1.0,) * 5), None)
    assert captions.tobytes() != plain.tobytes()
    with pytest.raises(UserError, match="trace is of 5 frames and these are 3"):
        contact_sheet(sample_frames(videos / "clip_3.mkv", 3), found.trace)


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00.00"), (3.254, "0:03.25"), (59.999, "1:00.00"), (3725.5, "62:05.50")])
def test_times(seconds, text):
    assert time_of(seconds) == text


@pytest.mark.parametrize(
    "changes",
    [{"keep": None}, {"keep_cls": True, "budget": "clip"}, {"num_frames": 2, "limit": 3}, {"strategy": "fps"}, {"blind": True}],
)
def test_a_run_is_reproduced_from_its_protocol(subject, settings, changes):
    chosen = settings(**changes)
    first, _ = run(subject, chosen)
    found = reproduce(protocol_file(chosen.answers_file))
    assert found.agrees
    assert found.answers_file.read_bytes() == chosen.answers_file.read_bytes()
    again = json.loads(protocol_file(found.answers_file).read_text())
    same = [*identity_of(subject, chosen), "batch_size", "mean_visual_tokens", "score"]
    assert {key: again[key] for key in same} == {key: first[key] for key in same}


def test_report_knows_all_that_tells_runs_apart(subject, settings):
    assert set(identity_of(subject, settings())) <= {*MODEL, *BENCHMARK, *CELL, *SETTINGS, "blind"}


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_contact_sheet_shows_the_middle_of_a_frame(shape):
    pixels = np.zeros((1, *shape, 3), np.uint8)
    pixels[:, shape[0] // 2 - 8 : shape[0] // 2 + 8, shape[1] // 2 - 8 : shape[1] // 2 + 8] = 200
    sheet = np.asarray(contact_sheet(Frames(pixels, (0.0,), (0,)), None))
    assert (sheet[8:264, 8:264] == 200).all()
