"""The demo's server, without a browser: what any client may send."""

import asyncio
import json
from contextlib import suppress
from uuid import uuid4

import httpx
import pytest

from fastervlm.demo.examples import examples_for
from fastervlm.demo.foreign import SoundRequests
from tests.support.browser import demo_server


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where the server puts what it is sent."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(engine, uploads):
    """A server over the tiny model; its examples are drawn first."""
    assert examples_for(engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        with demo_server(uploads / "said", "--model", engine.subject.path) as address:
            yield f"{address}gradio_api"


@pytest.fixture(scope="module")
def functions(address):
    """All that the page can call, by their ids."""
    config = httpx.get(f"{address.removesuffix('gradio_api')}config", timeout=60).json()
    return {each["id"]: each for each in config["dependencies"]}


@pytest.fixture(scope="module")
def asked(address, functions):
    """A function from a file's name to what a client gets that asks about it."""
    index = next(index for index, each in functions.items() if each["backend_fn"] and len(each["inputs"]) == 9)
    return lambda file: joined(address, {"data": [file, "What is it?", 4, "cls", "", 0, True, 4, None], "fn_index": index})


def joined(address, body):
    """What comes of a place in the queue."""
    body = {"session_hash": uuid4().hex} | body
    answer = httpx.post(f"{address}/queue/join", json=body, timeout=60)
    if answer.status_code != 200:
        return [answer.json()]
    with httpx.stream("GET", f"{address}/queue/data", params={"session_hash": body["session_hash"]}, timeout=60) as answer:
        return [json.loads(line.removeprefix("data:")) for line in answer.iter_lines() if line.startswith("data:")]


@pytest.mark.parametrize("form", [{}, {"url": "http://127.0.0.1/x.png"}, {"orig_name": "x.png", "is_stream": True}])
def test_no_client_reads_a_file_of_the_server(asked, picture, uploads, form):
    secret = picture()
    (uploads / "link.png").unlink(missing_ok=True)
    (uploads / "link.png").symlink_to(secret)
    for path in (secret, uploads / ".." / secret.relative_to(uploads.parent), uploads / "link.png", "x\0y"):
        events = asked({"path": str(path)} | form)
        assert "data:image" not in json.dumps(events)
        assert events[-2]["output"]["error"] == "This file was not handed in here; choose it on the page.", path


def test_what_was_handed_in_is_answered(address, asked, picture):
    with picture().open("rb") as file:
        (path,) = httpx.post(f"{address}/upload", files={"files": ("mine.png", file)}, timeout=60).json()
    events = asked({"path": path})
    assert "data:image" in json.dumps(events)
    assert events[-2]["success"]


@pytest.mark.parametrize(("megabytes", "status"), [(19, 200), (21, 413)])
def test_an_upload_has_at_most_20_megabytes(address, megabytes, status):
    files = {"files": ("large.png", bytes(megabytes << 20))}
    assert httpx.post(f"{address}/upload", files=files, timeout=60).status_code == status


HUGE = 10**400
DATA = [
    [],
    [None],
    [1] * 30,
    ["x"] * 9,
    [HUGE] * 9,
    [{"path": "/etc/passwd"}] * 9,
    [[[]]] * 9,
    [{}, "x", HUGE, {}, [], -1, "no", "9", 5],
]
ROUTES = (
    "queue/join",
    "run/predict",
    "api/predict",
    "call/ask",
    "call/v2/ask",
    "cancel",
    "reset",
    "component_server",
    "upload",
    "stream/x",
)
BODIES = (
    b"",
    b"null",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"data": "x"}',
    b'{"data": NaN}',
    b'{"data": [], "fn_index": "a"}',
    b'{"data": [], "fn_index": 0, "session_hash": 5}',
    b'{"data": [], "fn_index": 0, "session_hash": "x", "event_data": "x", "trigger_id": 1e99}',
    b'{"session_hash": "a", "component_id": 1000000000, "fn_name": "__init__", "data": null}',
    b'{"event_id": null, "fn_index": -1, "session_hash": "a"}',
)


def test_whatever_a_function_is_sent_the_terminal_stays_quiet(address, asked, functions, picture, uploads):
    """Other numbers of values, other kinds, other functions: a sentence each, and the server goes on."""
    for index in [*functions, -1, 999, HUGE]:
        for data in DATA:
            body = {"data": data, "fn_index": index, "session_hash": uuid4().hex}
            httpx.post(f"{address}/run/predict", json=body, timeout=60)
        for data in DATA[1], DATA[-1]:
            joined(address, {"data": data, "fn_index": index})
    with picture().open("rb") as file:
        (path,) = httpx.post(f"{address}/upload", files={"files": ("mine.png", file)}, timeout=60).json()
    assert asked({"path": path})[-2]["success"]
    assert said(uploads) == []


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "x/y"])
def test_whatever_a_route_is_sent_the_terminal_stays_quiet(address, uploads, kind):
    for route in ROUTES:
        for body in BODIES:
            answer = httpx.post(f"{address}/{route}", content=body, headers={"content-type": kind}, timeout=60)
            assert answer.status_code < 500 or "error" in answer.json(), (route, body)
    for path in (
        "queue/data?session_hash=none",
        "call/ask/x",
        "file=%00",
        "stream/a/b/c/playlist.m3u8",
        "custom_component/a/b/c/d",
    ):
        # The connection ends where an answer had begun; that of a queue goes on for ever.
        short = httpx.Timeout(60, read=2)
        with (
            suppress(httpx.RemoteProtocolError, httpx.ReadTimeout),
            httpx.stream("GET", f"{address}/{path}", timeout=short) as answer,
        ):
            next(answer.iter_raw(), None)
    assert said(uploads) == []


@pytest.mark.parametrize("begins", [False, True])
def test_a_route_that_fails_ends_its_answer(begins):
    """Nothing is raised to the server, which would print it, and no answer is left open."""

    async def failing(scope, receive, send):
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("no such function")

    async def get():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(SoundRequests(failing)), base_url="http://demo") as client:
            return await client.get("/")

    answer = asyncio.run(get())
    assert (answer.status_code, answer.text == "half", "load it anew" in answer.text) == (
        200 if begins else 400,
        begins,
        not begins,
    )


def said(uploads):
    """What stands in the terminal, but that weights were loaded."""
    return [line for line in (uploads / "said").read_text().splitlines() if line and not line.startswith("Loading weights")]
