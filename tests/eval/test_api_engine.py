"""`--api-base`: a server gives the answers of the model it runs, whatever fails on the way."""

import json
import threading
import time

import pytest

import fastervlm
from encoders import UserError
from fastervlm.eval.answers import journal_file
from fastervlm.eval.api_engine import ApiEngine
from fastervlm.eval.chat import Chat
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support.commands import run_command
from tests.support.openai_server import serving

NAME = "org/served"
MODELS = [{"id": NAME, "object": "model", "created": 1, "max_model_len": 4096}]


@pytest.fixture
def answering(subject):
    """What a server that runs the tiny model says: stock `generate` on the chat template's prompt."""
    lock, processor = threading.Lock(), subject.processor

    def answer(picture, text, body):
        content = [*([{"type": "image"}] if picture else []), {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert (body["model"], body["temperature"]) == (NAME, 0)
        with lock:
            inputs = processor(images=picture, text=prompt, return_tensors="pt")
            ids = subject.model.generate(**inputs, do_sample=False, max_new_tokens=body["max_tokens"])
        return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]

    return answer


def engine(server, workers=3, visual_tokens=None, **changes):
    return ApiEngine(Chat(server.base, NAME, **{"pause": 0.001, "retries": 1, **changes}), workers, visual_tokens)


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_a_server_answers_as_the_model_here(subject, settings, answering, tmp_path):
    here = settings(image_aspect_ratio="square", answers_file=tmp_path / "here.jsonl")
    expected, _ = evaluate(subject, here)
    chosen = settings(keep=None)
    with fastervlm.prune(subject.model, here.keep), serving(answering, MODELS) as server:
        protocol, score = evaluate(Subject(NAME), chosen, engine(server))
    assert texts(chosen.answers_file) == texts(here.answers_file)
    assert len(set(texts(here.answers_file))) > 2
    assert score is not None
    assert score.summary() == expected["score"]
    assert protocol["media_sha256"] == expected["media_sha256"]
    assert protocol["server"] == {"id": NAME, "object": "model", "max_model_len": 4096, "other_names": []}
    assert (protocol["model"], protocol["engine"], protocol["api_base"]) == ("served", "api", server.base)


@pytest.mark.parametrize(
    ("models", "asked", "told"),
    [
        (MODELS, None, ("of the server", "of the server")),
        (MODELS, 5, ("5 asked of the server", "of the server")),
        ([{**MODELS[0], "fastervlm": {"visual_tokens": 58, "method": "cls"}}], 5, (5, "cls")),
        ([*MODELS, {"id": f"{NAME}:visual_tokens=58,method=cls,newline=all"}], None, (58, "cls")),
        ([{**MODELS[0], "fastervlm": {"visual_tokens": 0.1, "method": "grid"}}], None, (0.1, "grid")),
    ],
)
def test_the_protocol_holds_what_the_server_says_of_its_tokens(settings, models, asked, told):
    bodies = []
    with serving(lambda picture, text, body: bodies.append(body) or "x", models) as server:
        protocol, _ = evaluate(Subject(NAME), settings(keep=None), engine(server, visual_tokens=asked))
    assert (protocol["visual_token_num"], protocol["method"]) == told
    sent = {None: None, 5: {"visual_tokens": 5}}[asked]
    assert {json.dumps(body.get("mm_processor_kwargs")) for body in bodies} == {json.dumps(sent)}


def test_a_run_that_its_server_left_goes_on(settings):
    chosen, fresh = settings(keep=None), iter(range(6))
    with serving(lambda *_: "x" if next(fresh, None) is not None else (503, "gone"), MODELS) as server:
        with pytest.raises(UserError, match=r"503 \(gone\), 2 times; give the same command again"):
            evaluate(Subject(NAME), chosen, engine(server, workers=1))
        assert len(journal_file(chosen.answers_file).read_text().splitlines()) == 1 + 6
        server.asked.clear()
        server.answer = lambda *_: "x"
        assert evaluate(Subject(NAME), chosen, engine(server))[0]["answered"] == 10
        assert len(server.asked) == 4


def test_a_question_that_is_refused_fails_alone(settings):
    def answer(_, text, __):
        return (400, "visual_tokens=9 is too many") if text == server.asked[0] else "x"

    with serving(answer, MODELS) as server:
        protocol, _ = evaluate(Subject(NAME), settings(keep=None), engine(server, workers=1))
    (failure,) = protocol["failures"]
    assert "visual_tokens=9 is too many" in failure["reason"]
    assert protocol["answered"] == 9


def test_so_many_are_asked_at_a_time_and_no_more(settings):
    with serving(lambda *_: time.sleep(0.05) or "x", MODELS) as server:
        evaluate(Subject(NAME), settings(keep=None), engine(server, workers=4))
    assert server.most == 4
    assert len(server.asked) == len(set(server.asked)) == 10


def test_the_key_is_sent_and_never_written_down(monkeypatch, capsys, bench, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    files = {f"--{name.replace('_', '-')}": path for name, path in bench.items()}
    told = [part for pair in files.items() for part in pair]
    with serving(lambda *_: "x", MODELS) as server:
        out = tmp_path / "a.jsonl"
        command = ["eval", "textvqa", "--api-base", server.base, "--model", NAME, "--answers-file", out, *told]
        code, said, errors = run_command(monkeypatch, capsys, *command)
    assert code == 0, errors
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-hidden"}
    assert "sk-hidden" not in said + errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-hidden" in path.read_bytes()]


def test_a_model_that_is_not_there_is_named(settings):
    with (
        serving(lambda *_: "x", [{"id": "other"}]) as server,
        pytest.raises(UserError, match="has no model 'org/served'; it has: other"),
    ):
        evaluate(Subject(NAME), settings(keep=None), engine(server))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"conv_mode": "vicuna_v1"}, "leave --conv-mode vicuna_v1 out"),
        ({"image_aspect_ratio": "anyres"}, "leave --image-aspect-ratio anyres out"),
    ],
)
def test_what_only_a_model_here_heeds_is_refused(settings, changes, sentence):
    with serving(lambda *_: "x", MODELS) as server, pytest.raises(UserError, match=sentence):
        evaluate(Subject(NAME), settings(keep=None, **changes), engine(server))


@pytest.mark.parametrize("option", [("--dtype", "float32"), ("--method", "random"), ("--anyres", "paper"), ("--engine", "ray")])
def test_options_of_a_model_here_are_refused(monkeypatch, capsys, bench, tmp_path, option):
    told = [part for name, path in bench.items() for part in (f"--{name.replace('_', '-')}", path)]
    command = [
        "eval",
        "textvqa",
        "--api-base",
        "http://127.0.0.1:9/v1",
        "--model",
        NAME,
        "--answers-file",
        tmp_path / "a.jsonl",
    ]
    code, _, errors = run_command(monkeypatch, capsys, *command, *told, *option)
    assert code == 2
    assert f"{option[0]} is for a model in this process" in errors


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((), "--api-base needs --model, the model's name on that server"),
        (("--model", NAME, "--visual-token-num", "0"), "keep=0 would leave no visual token"),
    ],
)
def test_what_no_server_can_be_asked_is_told_before_it_is(monkeypatch, capsys, bench, tmp_path, given, sentence):
    told = [part for name, path in bench.items() for part in (f"--{name.replace('_', '-')}", path)]
    with serving(lambda *_: "x", MODELS) as server:
        command = ["eval", "textvqa", "--api-base", server.base, "--answers-file", tmp_path / "a.jsonl", *told, *given]
        code, _, errors = run_command(monkeypatch, capsys, *command)
        assert not server.asked
    assert code == 2
    assert sentence in errors


@pytest.mark.parametrize("own", [True, False])
def test_a_server_is_asked_for_a_model_by_the_name_as_typed(monkeypatch, capsys, bench, tmp_path, own):
    """tiny-llava is a name there as well, and no folder of this machine; without files its mini benchmark is asked."""
    told = [part for name, path in bench.items() for part in (f"--{name.replace('_', '-')}", path)] if own else ["--limit", "2"]
    with serving(lambda _, __, body: body["model"], [{"id": "tiny-llava"}]) as server:
        command = ["eval", "textvqa", "--api-base", server.base, "--answers-file", tmp_path / "a.jsonl", *told]
        code, _, errors = run_command(monkeypatch, capsys, *command, "--model", "tiny-llava")
    assert code == 0, errors
    assert set(texts(tmp_path / "a.jsonl")) == {"tiny-llava"}
