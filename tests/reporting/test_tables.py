"""Tables in terminals of every width: nothing is cut, broken within a word, or wider than the terminal."""

import re

import pytest

from fastervlm.reporting.tables import markdown_table, print_table

HEADERS = ["method", "visual tokens", "gqa", "mmbench", "mme", "pope", "sqa", "textvqa", "relative average", "TTFT (ms)"]
SCORES = ["61.9 ± 0.9", "64.3 ± 1.4", "1510.7 ± 21.3", "85.9 ± 0.7", "69.5 ± 1.4", "58.2 ± 1.3"]
ROWS = [["none", "576", *SCORES, "100.0%", "83.2"], ["clip-relevance", "58", *SCORES, "95.0%", "43.2"]]
FRAME = re.compile(r"[┏┓┗┛━┳┻╇┡┩│┃└┘┴─├┤┼╈]")


def printed(monkeypatch, capsys, width, *table, **options):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(*table, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [200, 132, 100, 80, 60, 40, 24])
def test_a_wide_table_is_whole_at_every_width(monkeypatch, capsys, width):
    out = printed(monkeypatch, capsys, width, HEADERS, ROWS, title="tiny-llava", keys=2)
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out
    assert lines[0].strip() == "tiny-llava"
    words = FRAME.sub(" ", out).replace(":", " ").split()
    for text in (*HEADERS, *(cell for row in ROWS for cell in row)):
        assert set(text.split()) <= set(words), text
    for cell in (cell for row in ROWS for cell in row):
        assert any(cell in line for line in lines), "a number stands on one line"


def test_a_table_that_fits_is_one_with_every_header_on_one_line(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, 200, HEADERS, ROWS)
    assert out.count("┏") == 1
    assert all(header in out for header in HEADERS)


def test_headers_wrap_before_a_table_is_parted(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, 132, HEADERS, ROWS)
    assert out.count("┏") == 1
    assert "relative average" not in out


def test_each_part_names_its_rows(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, 80, HEADERS, ROWS, keys=2)
    count = out.count("┏")
    assert 2 <= count <= 3
    assert len(re.findall(r"│ clip-relevance +│ +58 │", out)) == count
    assert out.count("method") == count


def test_rows_are_lists_where_a_table_would_fall_to_pieces(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, 40, HEADERS, ROWS, keys=2)
    blocks = out.strip().split("\n\n")
    assert blocks[0].splitlines() == [f"{header}: {cell}" for header, cell in zip(HEADERS, ROWS[0], strict=True)]
    assert len(blocks) == 2


@pytest.mark.parametrize("width", [80, 40])
def test_long_texts_wrap_at_words(monkeypatch, capsys, width):
    """As in `data`, where a cell is a sentence; what looks like markup is text."""
    text = "5 of 320 pictures cannot be used, the first: a[CLS].png is missing :smile:"
    out = printed(monkeypatch, capsys, width, ["file", "found"], [["train_images", text], ["q.jsonl", "12 questions"]])
    assert max(map(len, out.splitlines())) <= width
    words = FRAME.sub(" ", out).split()
    assert set(text.split()) <= set(words)


def test_a_table_without_rows(monkeypatch, capsys):
    assert "method" in printed(monkeypatch, capsys, 80, HEADERS, [])


def test_markdown_does_not_know_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert markdown_table(HEADERS, ROWS).splitlines()[2] == f"| {' | '.join(ROWS[0])} |"
