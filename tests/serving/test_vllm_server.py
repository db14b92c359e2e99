"""`fastervlm serve` with vLLM: clients of OpenAI's protocol get the answers of `prune`."""

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest

import fastervlm
from fastervlm.embedded import MODEL, embedded_benchmark
from tests.support.served import message, processes_of, serving
from tests.support.vllm_engine import asked, pruned

pytestmark = pytest.mark.vllm

MOST = 144
OPTIONS = ("--max-model-len", 1024, "--max-num-seqs", 16, "--block-size", 32, "--enforce-eager", "--dtype", "float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(MODEL, "--keep", MOST, "--engine", "vllm", *OPTIONS, log=log) as (base, process):
        yield base
    assert processes_of(process.pid) == []


@pytest.fixture(scope="module")
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=server, api_key="none", max_retries=0)


@cache
def processor():
    return fastervlm.load(MODEL)[1]


def text_of(ids):
    return processor().batch_decode([ids], skip_special_tokens=True)[0].strip()


def ask(client, request, keep=None, **more):
    text = request["prompt"].removeprefix("USER: <image>\n").removesuffix(" ASSISTANT:")
    body = {} if keep is None else {"mm_processor_kwargs": {"visual_tokens": keep}}
    return client.chat.completions.create(
        model=str(MODEL), messages=message(text, *request["images"]), temperature=0, max_tokens=20, extra_body=body, **more
    )


def test_thirty_two_clients_ask_for_different_counts(client):
    """Nothing is lost, nothing is answered twice, and each gets what `prune` gives for its own K."""
    requests = asked(MODEL, 40)
    jobs = [(request, keep) for request in requests for keep in (29, 58, MOST)]
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda job: ask(client, *job), jobs))
    assert len({reply.id for reply in replies}) == len(jobs)
    said = [reply.choices[0].message.content.strip() for reply in replies]
    wanted = {keep: [text_of(ids) for ids in pruned(MODEL, requests, keep)] for keep in (29, 58, MOST)}
    assert said == [wanted[keep][place] for place in range(len(requests)) for keep in (29, 58, MOST)]
    read = [len(processor()(text=request["prompt"]).input_ids[0]) - 1 for request in requests]  # <s>, and all but the picture
    assert [reply.usage.prompt_tokens for reply in replies] == [words + keep for words in read for keep in (29, 58, MOST)]


def test_a_stream_holds_the_same_answer_and_may_be_left(client):
    (request,) = asked(MODEL, 1)
    whole = ask(client, request).choices[0].message.content
    stream = ask(client, request, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    with ask(client, request, stream=True) as left:
        next(iter(left))
    assert ask(client, request).choices[0].message.content == whole


# A client of its own process: it says when each of its streams has begun, reads on to the end, and asks again, for as long as
# it lives. So whenever it is killed there are answers that are not yet written, however slow the one is who kills it.
CLIENT = """
import json, sys, threading, urllib.request
base, bodies = json.load(sys.stdin)
def ask(body):
    request = urllib.request.Request(base + "/chat/completions", body.encode(), {"Content-Type": "application/json"})
    while True:
        with urllib.request.urlopen(request) as stream:
            begun = [line for line in (stream.readline() for _ in range(4)) if line.startswith(b"data: {")]
            sys.stdout.write(f"{len(begun)}\\n")
            sys.stdout.flush()
            stream.read()
for body in bodies:
    threading.Thread(target=ask, args=[body]).start()
"""


def metric(server, name):
    """The number that the server's /metrics give."""
    with urllib.request.urlopen(f"{server.removesuffix('/v1')}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def test_a_client_that_is_killed_in_mid_answer_leaves_nothing_behind(client, server):
    requests, busy = asked(MODEL, 4), ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    before = [ask(client, each).choices[0].message.content for each in requests]
    long: dict[str, Any] = {"model": str(MODEL), "ignore_eos": True, "stream": True}
    lengths = (700, 610, 530, 470)  # so that they end, and are asked again, at different times
    texts = [each["prompt"].removeprefix("USER: <image>\n").removesuffix(" ASSISTANT:") for each in requests]
    bodies = [
        json.dumps({**long, "max_tokens": length, "messages": message(text, *each["images"])})
        for length, text, each in zip(lengths, texts, requests, strict=True)
    ]
    answered = metric(server, "vllm:request_success_total")
    settings: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other: Any
    with subprocess.Popen([sys.executable, "-c", CLIENT], **settings) as other:
        other.stdin.write(json.dumps([server, bodies]))
        other.stdin.close()
        begun = [int(other.stdout.readline()) for _ in bodies]
        other.kill()
        begun += map(int, other.stdout)
    ends = time.monotonic() + 120
    while (left := [metric(server, name) for name in busy]) != [0, 0, 0] and time.monotonic() < ends:
        time.sleep(0.5)
    assert left == [0, 0, 0]
    assert all(count > 0 for count in begun)
    # Some have been cut off in mid-answer.
    assert metric(server, "vllm:request_success_total") - answered < len(begun)
    assert [ask(client, each).choices[0].message.content for each in requests] == before


def test_more_than_the_server_keeps_is_status_400(client):
    from openai import BadRequestError

    (request,) = asked(MODEL, 1)
    with pytest.raises(BadRequestError, match=f"visual_tokens=145 is more than the {MOST} that this server keeps"):
        ask(client, request, 145)


def test_the_server_tells_what_it_keeps(server):
    with urllib.request.urlopen(f"{server}/models") as reply:
        names = [each["id"] for each in json.load(reply)["data"]]
    assert names == [str(MODEL), f"{MODEL}:visual_tokens={MOST},newline=all"]


@pytest.mark.parametrize("limit", [240, pytest.param(None, marks=pytest.mark.slow)])
def test_an_evaluation_by_the_server_is_that_of_the_model_here(server, tmp_path, limit):
    """All 960 questions, where it may be slow: 93.23 %."""
    from fastervlm.eval import get_task
    from fastervlm.eval.api_engine import ApiEngine
    from fastervlm.eval.chat import Chat
    from fastervlm.eval.medium import Pictures
    from fastervlm.eval.runner import evaluate
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject

    questions, folder, annotations = embedded_benchmark(MODEL)
    task, found = get_task("textvqa"), []
    for name, keep in (("here", 58), ("there", None)):
        settings = Settings(
            *(task, questions, folder, tmp_path / f"{name}.jsonl", annotations), keep=keep, limit=limit, medium=Pictures()
        )
        engine = None if keep else ApiEngine(Chat(server, str(MODEL)), 8, visual_tokens=58)
        protocol, score = evaluate(Subject(str(MODEL)), settings, engine)
        assert score is not None
        assert limit or score.value == pytest.approx(93.229, abs=1e-3)
        found.append((score.summary(), [json.loads(line)["text"] for line in settings.answers_file.read_text().splitlines()]))
    assert found[0] == found[1]
    assert protocol["visual_token_num"] == 58
