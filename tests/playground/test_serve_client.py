"""The client and the table of `bench_serve`, against a small server that streams as OpenAI's protocol has it."""

import base64
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from playground import bench_serve, serve_client
from playground.serve_client import Reply, Round, ask_all, median_ratio, metrics, percentile
from tests.support.openai_stream import TOKENS, Streams, serving, shown

pytest.importorskip("openai")


@pytest.fixture
def pictures(tmp_path):
    """Files that differ in a byte, and how their requests write them."""
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    return files


def url(picture):
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def asked(plan, pictures, at_once=2, together=1):
    streams = Streams({url(picture): told for picture, told in plan.items()}, together)
    with serving(streams) as base:
        return ask_all(base, "model", pictures, at_once, 58, TOKENS), streams


def test_each_picture_is_asked_about_once(pictures):
    found, streams = asked({}, pictures)
    assert sorted(each.name for each in found.replies) == [f"r{number}" for number in range(6)]
    assert {(each.tokens, each.prompt, each.ended) for each in found.replies} == {(TOKENS, 70, "length")}
    assert sorted(shown(body) for body in streams.bodies) == sorted(map(url, pictures))
    for body in streams.bodies:
        assert (body["max_tokens"], body["ignore_eos"], body["stream"], body["temperature"]) == (TOKENS, True, True, 0)
        assert body["mm_processor_kwargs"] == {"visual_tokens": 58}


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_are_asked_at_once_and_never_more(pictures, at_once):
    """The server answers none before so many have come, and then takes long enough for one more to come too early."""
    _, streams = asked({picture: {"last": lambda: time.sleep(0.05)} for picture in pictures}, pictures, at_once, at_once)
    assert streams.most == at_once


class Clock:
    """It is read by the client, and put forward by the server: `forward` waits until it has been read so often."""

    def __init__(self):
        self.now, self.read, self.changed = 100.0, 0, threading.Condition()

    def perf_counter(self):
        with self.changed:
            self.read += 1
            self.changed.notify_all()
            return self.now

    def forward(self, often, seconds):
        with self.changed:
            assert self.changed.wait_for(lambda: self.read >= often, timeout=60)
            self.now += seconds


def test_the_first_token_is_timed_and_not_the_last(pictures, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(serve_client, "time", clock)
    plan = {"first": lambda: clock.forward(2, 0.25), "last": lambda: clock.forward(3, 0.5)}
    found, _ = asked({pictures[0]: plan}, pictures[:1])
    assert (found.replies[0].first_token_s, found.first_token(0.5)) == (0.25, 0.25)
    assert (found.seconds, found.requests_per_s) == (0.75, 1 / 0.75)


LOST = {
    "cut off": ({"ended": None}, 1, 0),
    "cut off before the first token": ({"ended": None, "tokens": 0}, 1, 0),
    "ended of itself": ({"ended": "stop"}, 1, 0),
    "ended early": ({"tokens": TOKENS - 1, "ended": "stop"}, 1, 0),
    "answered as another": ({"name": "r0"}, 0, 1),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_is_lost_or_answered_twice_is_counted(pictures, kind):
    told, lost, twice = LOST[kind]
    streams = Streams({url(pictures[1]): told})
    with serving(streams) as base:
        rounds = [ask_all(base, "model", some, 1, 58, TOKENS) for some in (pictures[:3], pictures[3:])]
        assert bench_serve.checked(rounds, base) == {"requests": 6, "lost": lost, "twice": twice, "answered_by_the_server": 7}


def test_an_error_of_the_server_ends_all(pictures):
    from openai import InternalServerError

    streams = Streams({})
    streams.status = 500
    with serving(streams) as base, pytest.raises(InternalServerError):
        ask_all(base, "model", pictures, 2, 58, TOKENS)


def test_the_counts_of_vllm_are_read(pictures):
    with serving(Streams({})) as base:
        assert metrics(base) == {"answered": 11, "aborted": 3, "running": 4, "waiting": 5, "blocks_in_use": 0.25}


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101])
def test_percentiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).permutation(count).tolist()
    for share in (0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
        assert percentile(values, share) == np.percentile(values, 100 * share, method="inverted_cdf")


def made(at_once, keep, seconds, firsts):
    return Round(at_once, keep, seconds, [Reply(f"{keep}-{first}", first, TOKENS, keep + 12, "length") for first in firsts])


# Two rounds of each count with four clients, and one that is another number's.
ROUNDS = [
    made(4, 576, 2.0, [1.0, 2.0, 3.0, 10.0]),
    made(4, 58, 0.5, [0.25, 0.5, 0.75, 1.0]),
    made(4, 58, 1.0, [0.5, 1.0, 1.5, 2.0]),
    made(4, 576, 8.0, [2.0, 4.0, 6.0, 8.0]),
    made(1, 576, 1.0, [99.0]),
]


def test_a_row_has_medians_of_rounds_and_ratios_of_rounds_side_by_side():
    found = bench_serve.row(ROUNDS, 4, 58)
    assert found["576"] == {
        "requests": 8,
        "prompt_tokens": 588,
        "requests_per_s": 1.25,  # of 2 and 0.5
        "first_token_p50_s": 3.0,  # of 1 2 2 3 4 6 8 10
        "first_token_p99_s": 10.0,
        "requests_per_s_of_rounds": [2.0, 0.5],
    }
    assert (found["58"]["requests_per_s"], found["58"]["first_token_p50_s"], found["58"]["first_token_p99_s"]) == (6, 0.75, 2)
    assert found["ratios"] == {
        "requests_per_s": 6.0,  # of 8 / 2 and 4 / 0.5
        "first_token_p50": 4.0,  # of 2 / 0.5 and 4 / 1
        "first_token_p99": 5.0,  # of all requests
    }
    assert median_ratio([8, 4, 9], [2, 1, 1]) == 4


def test_the_table_shows_both_counts_and_their_ratio():
    *_, line = bench_serve.table([bench_serve.row(ROUNDS, 4, 58)]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["4", "1.25 → 6.00 (6.0x)", "3.00 → 0.75 (4.0x)", "10.00 → 2.00 (5.0x)"]


def test_rounds_of_both_counts_show_the_same_pictures_and_take_turns(monkeypatch, capsys):
    """What is asked first warms up; the second repeat begins with the other count, and none begins when the time is over."""
    calls = []

    def ask(base, model, pictures, at_once, keep, tokens):
        calls.append(("".join(map(str, pictures)), at_once, keep))
        return Round(at_once, keep, 1.0, [])

    monkeypatch.setattr(bench_serve, "ask_all", ask)
    monkeypatch.setattr(bench_serve, "AT_ONCE", {1: 1, 2: 2})
    pictures = [Path(name) for name in "abcdefgh"]
    rounds = bench_serve.measured("", pictures, 2, 1000, (576, 58))
    assert calls[:2] == [("gh", 2, 576), ("gh", 2, 58)]
    assert [(shown, keep) for shown, _, keep in calls[2:]] == [
        *(("a", 576), ("a", 58), ("bc", 576), ("bc", 58)),
        *(("d", 58), ("d", 576), ("ef", 58), ("ef", 576)),
    ]
    assert len(rounds) == 8
    assert len(bench_serve.measured("", pictures, 2, 0, (576, 58))) == 4
    assert capsys.readouterr().out.count("requests/s") == 12
