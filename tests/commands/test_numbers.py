"""Numbers as typed: what is taken, and what is refused instead of being read as another number."""

import sys

import pytest
import typer

from encoders import UserError
from fastervlm import AtMost, cli
from fastervlm.commands.numbers import budgets_of, decimal_number, kept, kept_of, number, whole, whole_number, whole_numbers
from tests.support.checks import one_sentence

NO_NUMBERS = ["1_0", "", " ", "58 tokens", "0x10", "１２", "--5", "1e", "½"]


@pytest.mark.parametrize(("text", "value"), [("58", 58), (" 58 ", 58), ("+5", 5), ("0.1", 0.1), (".5", 0.5), ("1.", 1.0)])
def test_budget_is_a_count_or_a_fraction(text, value):
    assert (number(text), type(number(text))) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "budget"),
    [("at-most-256", AtMost(256)), (" at-most-256-0.1", AtMost(256, 0.1)), ("at-most-256-58", AtMost(256, 58)), ("58", 58)],
)
def test_a_bound_is_read_as_it_is_written(text, budget):
    assert kept(text) == budget
    assert kept(str(budget)) == budget
    assert kept_of(f"{text},0.5") == [budget, 0.5]


@pytest.mark.parametrize(
    "text", ["at-most", "at-most-", "at-most-0", "at-most-1_0", "at-most-5-", "at-most-5-2.0", "at-most-5-0", "at-most-2.5"]
)
def test_a_bound_that_is_none_is_refused(text):
    with pytest.raises(UserError) as caught:
        kept(text)
    one_sentence(caught.value)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_refused(text):
    for read in (number, lambda text: budgets_of(f"58,{text}"), lambda text: whole_numbers("batch", f"8,{text}")):
        with pytest.raises(UserError, match=r"--(visual-token-num|batch) is '"):
            read(text)
    for read in (whole_number, decimal_number, whole(0)["parser"]):
        with pytest.raises(typer.BadParameter, match=r"no (whole )?number; give"):
            read(text)


@pytest.mark.parametrize(("text", "least"), [("0", 1), ("-1", 0), ("8,0", 1), ("2.0", 1)])
def test_whole_numbers_have_a_least(text, least):
    with pytest.raises(UserError, match=f"give whole numbers of at least {least} separated by commas"):
        whole_numbers("batch", text, least)
    assert whole_numbers("batch", "8, 1", least) == [8, 1]


def test_a_number_that_no_machine_counts_to_is_refused():
    with pytest.raises(typer.BadParameter, match="too large; give a number of at most 2147483647"):
        whole_number("99999999999999999999")
    with pytest.raises(UserError, match="--batch is '8,2147483648'; give numbers of at most 2147483647"):
        whole_numbers("batch", "8,2147483648")
    assert whole_number("2147483647") == 2**31 - 1


@pytest.mark.parametrize(("text", "is_good"), [("0", False), ("1", True), ("9", True), ("10", False)])
def test_option_has_a_range(text, is_good):
    if is_good:
        assert whole(1, 9)["parser"](text) == int(text)
        return
    with pytest.raises(typer.BadParameter, match="must be at least 1 and at most 9"):
        whole(1, 9)["parser"](text)


COMMANDS = [
    ("eval", "textvqa", "--limit", "1_0"),
    ("eval", "textvqa", "--temperature", "0_1.5"),
    ("compare", "--seeds", "1_0"),
    ("bench", "--repeats", "1_0"),
    ("plan", "llava-1.5-7b", "h100", "--text-tokens", "1_0"),
    ("demo", "--port", "78_60"),
    ("analyze", "attn-shift", "--limit", "1_0"),
    ("video-qa", "--num-frames", "1_0"),
    ("video-score", "--timeout", "1_0"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_number_with_an_underscore(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastervlm", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err
