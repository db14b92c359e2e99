"""What is said of a search fits what happened in it."""

import json
import math

import pytest
import typer

from encoders import UserError
from fastervlm.commands.names import METHODS
from fastervlm.commands.tune import TRIED, _tell
from fastervlm.tune.candidates import Candidate
from fastervlm.tune.plot import tune_panels
from fastervlm.tune.report import Tuned
from fastervlm.tune.run import _refuse
from fastervlm.tune.search import KEEPS, Found, Point, Promise

TOKENS, LOST, TIME = "try more tokens", "is it shown that less than", "is fast enough; try fewer tokens"
LOSS, SPEED, BOTH = Promise(0.05), Promise(None, ttft=0.5), Promise(0.05, ttft=0.5)
# The promise, the verdicts of the points, and what is said where none is recommended.
NOTHING = {
    "all lose too much": (LOSS, (), TOKENS),
    "all are too slow": (SPEED, (), TIME),
    "all turned out too slow": (SPEED, ("not tried for a loss",), TIME),
    "some lose too much, others are too slow": (BOTH, (), "try other numbers of tokens"),
    "not shown": (LOSS, ("not shown", KEEPS), LOST),
    "not shown, under both": (BOTH, ("not shown", KEEPS), LOST),
    "what keeps it is too slow": (BOTH, (KEEPS, "not shown"), TIME),
}


def tuned(promise, verdicts, best=False, whole_seconds=0.9):
    points = [Point(Candidate("cls", 9 - i), 0.9, 0.9, 0.01, 0.4, 300, told) for i, told in enumerate(verdicts)]
    found = Found(points[0] if best else None, points, 0.9, whole_seconds, [], 16, 400)
    return Tuned(found, promise, {"model_path": "tiny-llava"})


@pytest.mark.parametrize(("promise", "verdicts", "said"), NOTHING.values(), ids=NOTHING)
def test_why_nothing_is_recommended(promise, verdicts, said):
    (line,) = tuned(promise, verdicts).lines()
    assert [part in line for part in (TOKENS, LOST, TIME)] == [part == said for part in (TOKENS, LOST, TIME)]
    assert said in line


@pytest.mark.parametrize(("whole_seconds", "told"), [(0.45, True), (0.55, False)])
def test_all_tokens_that_are_fast_enough_are_told(whole_seconds, told):
    """Then nothing has to be lost."""
    line = tuned(SPEED, ("not tried for a loss",), best=True, whole_seconds=whole_seconds).lines()[0]
    assert ("All tokens are fast enough too: 450.0 ms." in line) == told


def test_a_search_that_found_nothing_to_draw_tells_no_plot(tmp_path, capsys):
    """And that of an earlier search does not stay beside its table."""
    for verdicts, name in ((("not shown",), "tune.json, tune.png"), ((), "tune.json")):
        result = tuned(LOSS, verdicts)
        result.write(tmp_path)
        _tell(result, tmp_path)
        assert capsys.readouterr().out.endswith(f"{name}\n")
        assert (tmp_path / "tune.png").exists() == bool(verdicts)


def test_help_names_the_methods_that_are_tried():
    def is_tried(name):
        try:
            return _refuse(name) is None
        except UserError:
            return False

    assert list(TRIED) == list(filter(is_tried, METHODS))


UNTIMED = [Point(Candidate("cls", 9), 0.9, 0.9, 0.01, math.nan, 300, "not tried for a loss")]


def test_what_has_no_number_is_told_as_none(tmp_path):
    """Neither table nor JSON holds a nan, and the plot has no panel of times that nobody measured."""
    found = Found(None, UNTIMED, math.nan, math.nan, [], 16, 400)
    result = Tuned(found, SPEED, {"model_path": "tiny-llava"})
    result.write(tmp_path)
    told = json.loads((tmp_path / "tune.json").read_text(), parse_constant=pytest.fail)
    assert (told["found"]["whole"], told["found"]["points"][0]["seconds"]) == (None, None)
    assert told["found"]["points"][0]["accuracy"] == 0.9
    assert "nan" not in (tmp_path / "tune.md").read_text()
    assert "has a time, because no batch came together; give a smaller --batch-size" in result.lines()[0]
    assert [panel.x_label for panel in tune_panels(found, SPEED, None, "95 %")] == ["visual tokens"]


def test_what_failed_is_named_and_ends_with_an_error(tmp_path, capsys):
    failure = {"line": 3, "question_id": "q3", "prompt": "?", "image": "a.png", "reason": "is not there"}
    result = Tuned(tuned(LOSS, (KEEPS,)).found, LOSS, {"model_path": "tiny-llava"}, failures=[failure])
    result.write(tmp_path)
    told = json.loads((tmp_path / "tune.json").read_text())
    assert (told["failed"], told["failures"]) == (1, [failure])
    with pytest.raises(typer.Exit) as ended:
        _tell(result, tmp_path)
    out, err = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert "question q3: a.png is not there" in err
    assert "1 questions failed" in err
    assert "tune.json" in out
