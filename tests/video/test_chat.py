"""Requests to an endpoint: what is tried again, how long is waited, and what is sent to whom."""

import socket
import threading
import time
from contextlib import suppress
from email.utils import formatdate

import pytest

from encoders import UserError
from fastervlm.eval import chat as chat_module
from fastervlm.eval.chat import Chat, NoReply, RateLimit
from tests.support.chat_server import YES, completion
from video.judge import judge


def test_without_a_key_none_is_sent(stub):
    server = stub(YES)
    server.chat()([{"role": "user", "content": "x"}])
    assert "Authorization" not in server.requests[0][1]


BUSY = {
    "408": (408, ""),
    "409": (409, ""),
    "425": (425, ""),
    "429 and seconds": (429, "{}", {"Retry-After": "0.3"}),
    "429 and a date": (429, "slow", {"Retry-After": formatdate(time.time() - 5, usegmt=True)}),
    "429 and a date that no calendar has": (429, "slow", {"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}),
    "429 and nonsense": (429, "slow", {"Retry-After": "soon"}),
    "500": (500, ""),
    "503": (503, "<html>no</html>"),
    "no JSON": (200, "hello"),
    "no choices": (200, "{}"),
    "an empty list": (200, '{"choices": []}'),
    "no text": (200, '{"choices": [{"message": {"content": null}}]}'),
}


@pytest.mark.parametrize("first", BUSY.values(), ids=BUSY)
def test_what_passes_is_tried_again(stub, predictions, tmp_path, first):
    server, told = stub(lambda _, times: first if times < 3 else YES), []
    _, tally = judge(predictions, server.chat(say=told.append), tmp_path / "out.json", workers=6)
    assert (tally.yes, tally.judged) == (6, 6)
    assert len(told) == 1
    assert set(server.times.values()) == {3}


def test_the_endpoint_says_how_long_to_wait(stub):
    server = stub(lambda _, times: BUSY["429 and seconds"] if times == 1 else YES)
    server.chat(pause=60)([{"role": "user", "content": "x"}])
    assert 0.29 < server.started[1] - server.started[0] < 30


def test_a_wait_is_never_above_a_minute(monkeypatch):
    assert chat_module._pause(1.0, 86400.0) == 60
    assert chat_module._pause(1000.0, None) == 60


def test_silence_is_cut_short_and_tried_again(stub):
    server = stub(lambda _, times: 30.0 if times == 1 else YES)
    start = time.monotonic()
    assert server.chat(timeout=0.2)([{"role": "user", "content": "x"}]) == YES
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_carried_to_another_host(stub, status):
    other = stub(YES)
    server = stub((status, "", {"Location": f"{other.base}/chat/completions"}))
    with pytest.raises(UserError, match=str(status)):
        server.chat(key="secret")([{"role": "user", "content": "x"}])
    assert not other.requests


def test_a_reply_without_end_is_read_to_a_bound(stub):
    server = stub((200, completion("x" * (2 * chat_module.LONGEST_REPLY))))
    with pytest.raises(NoReply, match="no chat completion"):
        server.chat(retries=0)([{"role": "user", "content": "x"}])
    server = stub((400, "x" * (2 * chat_module.LONGEST_REPLY)))
    with pytest.raises(NoReply, match=r"400 \(x{200}\)$"):
        server.chat(retries=0)([{"role": "user", "content": "x"}])


def test_requests_keep_to_the_rate(monkeypatch):
    """Three callers at once, then one after a pause: each is told to wait until half a second after the one before."""
    now = [100.0]
    monkeypatch.setattr(chat_module.time, "monotonic", lambda: now[0])
    rate = RateLimit(120)
    assert [rate.wait() for _ in range(3)] == [0, 0.5, 1.0]
    now[0] += 10
    assert [rate.wait(), rate.wait()] == [0, 0.5]
    assert [RateLimit(None).wait() for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Down\r\n\r\n"])
def test_a_reply_that_drips_in_does_not_outlive_the_timeout(head, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            with listening.accept()[0] as connection, suppress(OSError):
                connection.sendall(head)
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(NoReply):
            Chat(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", timeout=0.4, retries=0)([])
    assert 0.3 < time.monotonic() - began < 5
