"""Tables: Markdown, and the terminal, in which they are as wide as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

LONGEST = 24  # of cells that stay on one line
MOST_PARTS = 3
FRAME = 3  # characters that a column takes besides its text; the table takes one more


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", keys: int = 1) -> None:
    """The same table in the terminal.

    Headers and long texts are wrapped at words, nothing else. What is too wide all the same comes in a few tables, each with
    the first `keys` columns, which name a row; where that would take more than a few, each row is a list.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    columns = [_Column.of(header, [row[i] for row in rows]) for i, header in enumerate(headers)]
    parts = _parts(columns, keys, console.width)
    for number, part in enumerate(parts):
        console.print(_table(part, console.width, title if number == 0 else ""))
    if not parts:
        console.print("\n".join(_lists(columns, title)))


@dataclass(frozen=True)
class _Column:
    """A column; `narrow` and `wide` are the least width in which it reads well, and that in which nothing is wrapped."""

    header: str
    cells: list[str]
    narrow: int
    wide: int

    @classmethod
    def of(cls, header: str, cells: list[str]) -> _Column:
        whole = [header, *cells]
        narrow = [
            _longest_word(header),
            *(_longest_word(cell) if cell_len(cell) > LONGEST else cell_len(cell) for cell in cells),
        ]
        return cls(header, cells, max(1, *narrow), max(1, *map(cell_len, whole)))

    def width(self, left: int) -> int:
        """With so much room left: its whole text if that fits, and all the room for long texts."""
        more = self.wide - self.narrow
        is_text = any(cell_len(cell) > LONGEST for cell in self.cells)
        return self.narrow + (min(left, more) if is_text or more <= left else 0)


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def _parts(columns: list[_Column], keys: int, width: int) -> list[list[_Column]]:
    """The columns in parts that fit, each with the first ones; none where more parts would be needed than one reads."""
    parts, part = [], columns[: keys + 1]
    for column in columns[keys + 1 :]:
        if _width([*part, column]) > width:
            parts.append(part)
            part = columns[:keys]
        part = [*part, column]
    parts.append(part)
    return parts if len(parts) <= MOST_PARTS and all(_width(part) <= width for part in parts) else []


def _width(columns: Sequence[_Column]) -> int:
    return 1 + sum(column.narrow + FRAME for column in columns)


def _table(columns: list[_Column], width: int, title: str) -> Table:
    table, left = Table(title=title or None), width - _width(columns)
    for i, column in enumerate(columns):
        chosen = column.width(left)
        left -= chosen - column.narrow
        table.add_column(column.header, justify="right" if i else "left", width=chosen)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _lists(columns: list[_Column], title: str) -> Iterator[str]:
    if title:
        yield title
    for row in zip(*(column.cells for column in columns), strict=True):
        yield ""
        yield from (f"{column.header}: {cell}" for column, cell in zip(columns, row, strict=True))
