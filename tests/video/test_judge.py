"""The judge against a stub of an OpenAI-compatible server: what it is shown, what it says, and when a run ends."""

import json
import time
from collections import Counter

import pytest

from encoders import UserError
from fastervlm.eval.chat import Chat, NoReply, RateLimit
from tests.support.chat_server import YES
from video import judge as judge_module
from video.judge import ASKED, IN_A_ROW, Tally, judge, verdict_in


def test_each_answer_is_shown_to_the_judge_and_its_verdicts_are_summed(stub, predictions, tmp_path):
    said = {f"Q{i}?": f'{{"pred": "{"yes" if i % 3 else "no"}", "score": {i}}}' for i in range(6)}
    server = stub(lambda name, _: said[name])
    result, tally = judge(predictions, server.chat(key="secret"), tmp_path / "out.json")
    assert (tally.yes, tally.no, tally.accuracy, tally.average_score) == (4, 2, 4 / 6, 15 / 6)
    assert json.loads((tmp_path / "out.json").read_text())["verdicts"] == result["verdicts"]
    assert [verdict["id"] for verdict in result["verdicts"]] == [f"v_{i}" for i in range(6)]
    assert sorted(server.times.values()) == [1] * 6
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == "Bearer secret"
        assert (body["model"], body["temperature"]) == ("tiny-judge", 0)
        shown = body["messages"][1]["content"]
        i = shown.partition("Question: Q")[2][0]
        assert f"right {i}" in shown
        assert f"given {{{i}}}" in shown
    assert not (tmp_path / "out.json.partial").exists()
    assert "secret" not in (tmp_path / "out.json").read_text()


def test_finished_verdicts_are_not_asked_for_again(stub, predictions, tmp_path):
    server = stub(YES)
    first = judge(predictions, server.chat(), tmp_path / "out.json")
    second = judge(predictions, server.chat(), tmp_path / "out.json")
    assert len(server.requests) == 6
    assert first[1] == second[1]
    with pytest.raises(UserError, match="judge is 'tiny-judge' there and 'other' now"):
        judge(predictions, Chat(server.base, "other"), tmp_path / "out.json")
    assert judge(predictions, Chat(f"{server.base}/", "tiny-judge"), tmp_path / "out.json")[1] == first[1]


def test_verdicts_of_two_endpoints_never_mix(stub, predictions, tmp_path):
    """Neither finished ones nor those of a run that was ended."""
    one, other = stub(lambda name, _: (401, "") if name == "Q3?" else YES), stub(YES)
    with pytest.raises(UserError, match="401"):
        judge(predictions, one.chat(), tmp_path / "out.json", workers=1)
    assert (tmp_path / "out.json.partial").exists()
    for reply in (YES, None):
        with pytest.raises(UserError, match=f"api_base is '{one.base}' there and '{other.base}' now"):
            judge(predictions, other.chat(), tmp_path / "out.json")
        one.reply = lambda *_, reply=reply: reply
        judge(predictions, one.chat(), tmp_path / "out.json")
    assert not other.requests


def test_a_journal_left_beside_finished_verdicts_is_cleared(stub, predictions, tmp_path):
    server, journal = stub(YES), tmp_path / "out.json.partial"
    judge(predictions, server.chat(), tmp_path / "out.json")
    journal.touch()
    judge(predictions, server.chat(), tmp_path / "out.json")
    assert not journal.exists()


FATAL = [(401, '{"error": {"message": "bad key"}}', "401 \\(bad key\\)"), (403, "", "403"), (404, "no", "404 \\(no\\)")]


@pytest.mark.parametrize(("status", "body", "message"), FATAL)
def test_what_no_request_will_survive_ends_the_run_at_once(stub, predictions, tmp_path, status, body, message):
    server = stub((status, body))
    with pytest.raises(UserError, match=message):
        judge(predictions, server.chat(key="secret"), tmp_path / "out.json", workers=1)
    assert len(server.requests) == 1
    assert not (tmp_path / "out.json").exists()


def test_a_refused_question_is_named_and_the_others_go_on(stub, predictions, tmp_path):
    server = stub(lambda name, _: (400, '{"error": {"message": "filtered"}}') if name == "Q2?" else YES)
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"]) == (5, 1)
    assert result["failures"][0]["id"] == "v_2"
    assert "filtered" in result["failures"][0]["reason"]
    assert server.times["Q2?"] == 1
    server.reply = lambda *_: YES
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"], server.times["Q2?"], server.times["Q1?"]) == (6, 0, 2, 1)
    assert not (tmp_path / "out.json.partial").exists()


def test_garbage_is_asked_again_within_bounds(stub, predictions, tmp_path):
    server = stub(lambda name, times: "I think so" if name == "Q1?" or (name == "Q3?" and times == 1) else YES)
    result, tally = judge(predictions, server.chat(), tmp_path / "out.json")
    assert (tally.judged, result["failed"]) == (5, 1)
    assert "no verdict in 3 replies" in result["failures"][0]["reason"]
    assert server.times == Counter({f"Q{i}?": {1: ASKED, 3: 2}.get(i, 1) for i in range(6)})


def test_a_dead_endpoint_ends_the_run(stub, predictions, tmp_path):
    server = stub((500, "down"))
    with pytest.raises(UserError, match=r"5 answers in a row got no verdict: .* answers 500 \(down\), 2 times"):
        judge(predictions, server.chat(retries=1), tmp_path / "out.json", workers=1)
    assert 2 * IN_A_ROW <= len(server.requests) <= 2 * IN_A_ROW + 2
    with pytest.raises(NoReply, match="cannot be reached"):
        Chat("http://127.0.0.1:9", "m", retries=0)([])


@pytest.mark.parametrize("reply", ["no idea", (400, "no")])
def test_an_endpoint_that_never_judges_ends_the_run(stub, predictions, tmp_path, reply):
    """The next run goes on behind the five, and one more asks about those again, to the end."""
    server, out = stub(reply), tmp_path / "out.json"
    with pytest.raises(UserError, match="5 answers in a row got no verdict"):
        judge(predictions, server.chat(), out, workers=1)
    assert not out.exists()
    assert len(server.times) <= IN_A_ROW + 1  # one may have begun meanwhile
    server.reply = lambda name, _: YES if name == "Q5?" else (400, "filtered")
    result, tally = judge(predictions, server.chat(), out, workers=1)
    assert (tally.judged, result["failed"]) == (1, 5)
    assert out.exists()


def test_only_failures_in_a_row_end_the_run(stub, predictions, tmp_path, monkeypatch):
    """Four silent and one answered, twelve times; nobody looks before all have come."""
    predictions.write_text(predictions.read_text() * 10)
    said = iter(([(500, "")] * 4 + [YES]) * 12)
    server = stub(lambda *_: next(said))

    def late(things, *_, **__):
        while len(server.requests) < 60:
            time.sleep(0.01)
        time.sleep(0.05)
        return things

    monkeypatch.setattr(judge_module, "track", late)
    result, _ = judge(predictions, server.chat(retries=0), tmp_path / "out.json", workers=1)
    assert result["failed"] == 48


def test_the_judge_waits_for_its_turns(stub, predictions, tmp_path):
    server = stub(YES)
    start = time.monotonic()
    judge(predictions, server.chat(rate=RateLimit(1200)), tmp_path / "out.json", workers=6)
    assert time.monotonic() - start >= 5 * 0.05


VERDICTS = [
    ("{'pred': 'yes', 'score': 4.8}", {"pred": "yes", "score": 4.8}),
    (YES, {"pred": "yes", "score": 4}),
    (' {"pred": "no", "score": null}\n', {"pred": "no", "score": None}),
    ("```json\n" + YES + "\n```", {"pred": "yes", "score": 4}),
    ("Sure: {'pred': 'no', 'score': 0}.", {"pred": "no", "score": 0}),
    ("{'pred': 'yes'}", {"pred": "yes"}),
    ("{'score': 'high', 'pred': 'no'}", {"score": "high", "pred": "no"}),
    ("__import__('os').abort()", None),
    ("{'pred': __import__('os').abort(), 'score': 1}", None),
    ("['yes', 4]", None),
    ("yes, 4", None),
    ("{}", None),
    ("{'answer': 'yes'}", None),
    ("{'pred': 'yes', 'score': 50}", None),
    ("{'pred': 'yes', 'score': -1}", None),
    ("{'pred': {'yes'}, 'score': 4}", None),
    ("{'pred': 'yes', 'score': 4j}", None),
    ('{"pred": "yes", "score": NaN}', None),
    ("{'pred': 'yes', 'score': 1e400}", None),
    ("{'pred': 'yes', 'score': ", None),
    ("(" * 5000, None),
    (YES + " " * 20000, None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "verdict"), VERDICTS)
def test_replies_are_read_and_never_run(reply, verdict):
    assert verdict_in(reply) == verdict


TALLIES = [
    ([{"pred": "yes", "score": 4.8}, {"pred": "no", "score": 1}], (0.5, 2.5, 1, 1)),
    ([{"pred": "Yes, it is not wrong", "score": 5}], (1.0, 5.0, 1, 0)),
    ([{"pred": "I do not know", "score": 1}], (0.0, 1.0, 0, 1)),
    ([{"pred": "perhaps", "score": 3}], (None, 3.0, 0, 0)),
    ([{"pred": "yes"}, {"pred": "yes", "score": 4}], (1.0, 2.0, 1, 0)),
    ([{"pred": "yes", "score": "4.8"}, {"pred": "no", "score": None}], (None, 0.0, 0, 0)),
    ([{"pred": "yes", "score": "4"}], (1.0, 4.0, 1, 0)),
    ([{"score": 2}, {"pred": "no", "score": 4}], (0.0, 3.0, 0, 1)),
    ([{"pred": None, "score": 3}, {"pred": "yes", "score": 5}], (1.0, 4.0, 1, 0)),
    ([{"pred": False, "score": 1}, {"pred": 0, "score": 1}], (None, 1.0, 0, 0)),
    ([{"pred": "None", "score": 1}], (0.0, 1.0, 0, 1)),
    ([], (None, 0.0, 0, 0)),
]


@pytest.mark.parametrize(("verdicts", "expected"), TALLIES)
def test_verdicts_are_counted_as_the_reference_counts(verdicts, expected):
    tally = Tally.of(verdicts)
    assert (tally.accuracy, tally.average_score, tally.yes, tally.no) == expected
    assert tally.judged == len(verdicts)
