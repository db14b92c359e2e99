import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from encoders import UserError
from fastervlm.eval.answers import Entry, Journal, journal_file, protocol_file
from fastervlm.eval.preparation import prepared
from fastervlm.eval.prompts import VICUNA_V1, conversation
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.methods.lookup import get_method
from fastervlm.reporting.measure import FirstTokenClock
from tests.support.tiny import processor, save_llava

ROOT = Path(__file__).parents[2]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_have_the_reference_schema_in_question_order(subject, settings, bench):
    chosen = settings()
    evaluate(subject, chosen)
    answers, questions = lines(chosen.answers_file), lines(bench["question_file"])
    assert [(a["question_id"], a["prompt"]) for a in answers] == [(q["question_id"], q["text"]) for q in questions]
    for answer in answers:
        assert list(answer) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert answer["model_id"] == "tiny"
        assert answer["metadata"] == {}
        assert len(answer["answer_id"]) == 22
        assert answer["answer_id"].isalnum()
    assert len({answer["answer_id"] for answer in answers}) == len(answers)
    assert len({answer["text"] for answer in answers}) > 2, (
        "the tiny model must tell questions apart for these tests to mean much"
    )
    assert sorted(p.name for p in chosen.answers_file.parent.iterdir()) == ["n_5.jsonl", "n_5.protocol.json"]


@pytest.mark.parametrize("changes", [{}, {"keep": None}, {"method": "random"}, {"method": "grid"}, {"conv_mode": "vicuna_v1"}])
def test_every_batch_size_gives_the_same_bytes(subject, settings, tmp_path, changes):
    written = []
    for size in (1, 3, 16):
        chosen = settings(batch_size=size, answers_file=tmp_path / f"b{size}.jsonl", **changes)
        evaluate(subject, chosen)
        written.append(chosen.answers_file.read_bytes())
    assert written[0] == written[1] == written[2]


def test_answers_equal_those_of_the_stock_model(subject, settings, bench):
    """Without pruning, the texts are what `generate` and the processor alone give."""
    from PIL import Image

    chosen = settings(keep=None, image_aspect_ratio="square")
    evaluate(subject, chosen)
    for question, answer in zip(lines(bench["question_file"]), lines(chosen.answers_file), strict=True):
        picture = Image.open(bench["image_folder"] / question["image"])
        inputs = processor()(images=picture, text=f"USER: <image>\n{question['text']} ASSISTANT:", return_tensors="pt")
        ids = subject.model.generate(**inputs, do_sample=False, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
        assert answer["text"] == processor().batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_protocol_says_all_there_is_to_say(subject, settings, bench):
    chosen = settings(method=get_method("random", seed=7))
    protocol, score = evaluate(subject, chosen)
    assert score is not None
    assert protocol == json.loads(protocol_file(chosen.answers_file).read_text())
    expected = {
        "task": "textvqa",
        "model": "tiny",
        "method": "RandomTokens(seed=7)",
        "budget": 5,
        "visual_token_num": 5,
        "mean_visual_tokens": 5,
        "mean_visual_tokens_unpruned": 16,
        "anyres": None,
        "image_aspect_ratio": "pad",
        "prompt_template": "USER: <image>\n{text} ASSISTANT:",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 4,
        "max_new_tokens": 3,
        "temperature": 0.0,
        "questions": 10,
        "answered": 10,
        "failed": 0,
        "failures": [],
        "score": score.summary(),
        "annotation_file": str(bench["annotation_file"]),
    }
    assert {key: protocol[key] for key in expected} == expected
    assert set(protocol["versions"]) == {"python", "torch", "transformers", "fastervlm"}
    assert protocol["samples_per_second"] > 0
    assert 0 < protocol["mean_time_to_first_token_s"] < 60
    assert protocol["command"] == shlex.join(["fastervlm", *sys.argv[1:]])
    hashes = ("weights_sha256", "question_file_sha256", "annotation_file_sha256")
    assert all(len(protocol[key]) == 64 for key in hashes)


def test_fraction_and_count_are_the_same_run(subject, settings):
    evaluate(subject, settings(keep=0.3))
    protocol, _ = evaluate(subject, settings(keep=5))
    assert protocol["visual_token_num"] == 5


def test_without_annotations_there_is_no_score(subject, settings):
    protocol, score = evaluate(subject, settings(annotation_file=None))
    assert score is None
    assert "score" not in protocol


def test_complete_answers_are_only_scored_again(subject, settings, bench, monkeypatch):
    first, _ = evaluate(subject, settings())
    assert first["score"]["value"] == 0
    annotations = json.loads(bench["annotation_file"].read_text())
    texts = [answer["text"] for answer in lines(settings().answers_file)]
    for record, text in zip(annotations["data"], texts, strict=True):
        record["answers"] = [text] * 10
    bench["annotation_file"].write_text(json.dumps(annotations))
    monkeypatch.setattr("fastervlm.eval.runner._answer_all", None)
    second, _ = evaluate(subject, settings())
    assert second["score"]["value"] == 100
    assert second["samples_per_second"] == first["samples_per_second"]


OTHERS = [
    ({"keep": 6}, "visual_token_num is 5 there and 6 now"),
    ({"keep": None}, "method is 'cls' there and 'none' now; visual_token_num is 5 there and 16 now"),
    ({"method": "grid"}, "method is 'cls' there and 'grid' now"),
    ({"method": "cls-lowest"}, "method is"),
    ({"conv_mode": "vicuna_v1"}, "prompt_template is"),
    ({"max_new_tokens": 4}, "max_new_tokens is 3 there and 4 now"),
    ({"temperature": 0.5}, "temperature is 0.0 there and 0.5 now"),
    ({"image_aspect_ratio": "square"}, "image_aspect_ratio is 'pad' there and 'square' now"),
    ({"blind": True}, "blind is False there and True now"),
    ({"limit": 3}, "limit is None there and 3 now"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("changes", "message"), OTHERS)
def test_answers_of_another_run_are_never_mixed(subject, settings, monkeypatch, finished, changes, message):
    chosen = settings()
    if finished:
        evaluate(subject, chosen)
    else:
        interrupt(subject, chosen, monkeypatch, batches=1)
    before = {path: path.read_bytes() for path in chosen.answers_file.parent.iterdir()}
    with pytest.raises(UserError, match=message):
        evaluate(subject, settings(**changes))
    assert {path: path.read_bytes() for path in chosen.answers_file.parent.iterdir()} == before


def test_answers_of_other_weights_dtype_or_questions_are_never_mixed(subject, settings, bench, model, tmp_path):
    evaluate(subject, settings())
    with pytest.raises(UserError, match="dtype is 'float32' there and 'bfloat16' now"):
        evaluate(Subject(str(model), dtype="bfloat16"), settings())
    with pytest.raises(UserError, match="weights_sha256 is"):
        evaluate(Subject(str(save_llava(tmp_path / "tiny", seed=1))), settings())
    with bench["question_file"].open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="question_file_sha256 is"):
        evaluate(subject, settings())


def test_answers_of_unknown_origin_are_refused(subject, settings):
    chosen = settings()
    chosen.answers_file.parent.mkdir()
    chosen.answers_file.write_text("{}\n")
    with pytest.raises(UserError, match="no protocol beside it"):
        evaluate(subject, chosen)
    protocol_file(chosen.answers_file).write_text("[")
    with pytest.raises(UserError, match="not a protocol"):
        evaluate(subject, chosen)
    chosen.answers_file.unlink()
    journal_file(chosen.answers_file).write_text("hello\n")
    with pytest.raises(UserError, match="not the journal"):
        evaluate(subject, chosen)


def interrupt(subject, settings, monkeypatch, batches):
    """Run until so many batches are in the journal, then stop as Ctrl-C does."""
    written = []

    def add(self, entries):
        if len(written) == batches:
            raise KeyboardInterrupt
        written.append(real(self, entries))

    real = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, settings)


@pytest.mark.parametrize("tail", [b"", b'{"line": 5, "te', b"\x00\x00\n", b'{"line": 5}garbage\n', b"3\n"])
def test_interrupted_run_goes_on_and_a_torn_line_is_cut_off(subject, settings, monkeypatch, tmp_path, tail):
    whole = settings(answers_file=tmp_path / "whole.jsonl")
    evaluate(subject, whole)
    chosen = settings()
    interrupt(subject, chosen, monkeypatch, batches=1)
    with journal_file(chosen.answers_file).open("ab") as file:
        file.write(tail)
    interrupt(subject, chosen, monkeypatch, batches=1)
    asked = []
    monkeypatch.setattr(
        "fastervlm.eval.engine.prepared", lambda b, *rest: prepared(asked.extend(q for x in b for q in x) or b, *rest)
    )
    evaluate(subject, chosen)
    assert [question.line for question in asked] == [9, 10]
    assert chosen.answers_file.read_bytes() == whole.answers_file.read_bytes()
    assert not journal_file(chosen.answers_file).exists()


def test_journal_without_a_whole_first_line_starts_anew(tmp_path):
    path = tmp_path / "j.partial"
    path.write_bytes(b'{"identi')
    with Journal(path, {"model": "m"}) as journal:
        journal.add([Entry(1, text="a")])
    assert lines(path)[0] == {"identity": {"model": "m"}}
    with Journal(path, {"model": "m"}) as journal:
        assert list(journal.entries) == [1]


def test_two_runs_cannot_hold_one_journal(tmp_path):
    path = tmp_path / "j.partial"
    with Journal(path, {}), pytest.raises(UserError, match="Another run"):
        Journal(path, {})
    Journal(path, {}).__exit__()


def test_killed_at_every_step_and_started_again_each_question_is_answered_once(model, bench, tmp_path):
    """`kill_evaluation` kills runs with SIGKILL before, in and after each write, rename and removal, and starts them again."""
    data = bench["question_file"].parent
    command = [sys.executable, "-m", "tests.support.kill_evaluation", str(model), str(data), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert {outcome["kind"] for outcome in outcomes} == {"write", "replace", "unlink"}
    assert len(outcomes) > 15
    for outcome in outcomes:
        assert outcome["same"], outcome
        assert outcome["left"] == ["n.jsonl", "n.protocol.json"], outcome


def test_first_token_is_timed_once_a_batch():
    import torch

    clock = FirstTokenClock(torch.device("cpu"))
    clock.start()
    assert clock.seconds is None
    ids = torch.zeros(3, 7, dtype=torch.long)
    assert clock(ids, None).tolist() == [False] * 3
    first = clock.seconds
    clock(ids, None)
    assert first is not None
    assert clock.seconds == first


def test_prompt_templates():
    with_chat, without = processor(), processor(chat_template=None)
    assert conversation(with_chat, None)("Q {x}") == "USER: <image>\nQ {x} ASSISTANT:"
    assert conversation(without, None)("Q") == VICUNA_V1.replace("{text}", "Q")
    assert conversation(with_chat, "vicuna_v1")("{text}") == VICUNA_V1
    assert VICUNA_V1.startswith("A chat between a curious user and")
    with pytest.raises(UserError, match="no chat template"):
        conversation(without, "chat")


def test_sampling_is_repeatable_by_seed(subject, settings, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        chosen = settings(temperature=2.0, seed=seed, answers_file=tmp_path / f"{name}.jsonl")
        evaluate(subject, chosen)
        texts.append([answer["text"] for answer in lines(chosen.answers_file)])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(model, settings, dtype):
    protocol, _ = evaluate(Subject(str(model), dtype=dtype), settings())
    assert protocol["dtype"] == dtype
    assert protocol["answered"] == 10


@pytest.mark.parametrize("keep", [5, None])
def test_a_picture_asked_about_twice_is_encoded_once_in_a_batch(subject, settings, keep):
    encoded = []
    hook = subject.model.model.vision_tower.embeddings.register_forward_hook(lambda *call: encoded.append(len(call[-1])))
    evaluate(subject, settings(keep=keep, batch_size=16))
    hook.remove()
    assert encoded == [5, 5]  # ten questions about five pictures: the warm-up, and the run


def test_pictures_and_processor_are_part_of_a_runs_identity(subject, model, settings, bench, tmp_path):
    chosen = settings()
    evaluate(subject, chosen)
    other = tmp_path / "other"
    shutil.copytree(bench["image_folder"], other)
    with pytest.raises(UserError, match="image_folder is"):
        evaluate(subject, settings(image_folder=other))
    shutil.copytree(model, tmp_path / "tiny")
    config = tmp_path / "tiny" / "processor_config.json"
    config.write_text(config.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    with pytest.raises(UserError, match="processor_sha256 is"):
        evaluate(Subject(str(tmp_path / "tiny")), chosen)
