"""One HTML page of an analysis: no network, light and dark, readable on a phone."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastervlm.analysis.examples import Example
from fastervlm.reporting.files import write_text

_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
_LEFT_OUT = ("failures", "versions", "command")
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #5b6570; --back: #ffffff; --card: #f4f6f8; --line: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ec; --soft: #9aa5b1; --back: #14181c; --card: #1d2329; --line: #333c45; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); }
h1 { font-size: 1.6rem; margin: 0.2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.6rem; }
p, figcaption, dt { color: var(--soft); } p { max-width: 46rem; }
figure { margin: 0 0 1.2rem; } figcaption { font-size: 0.9rem; margin-bottom: 0.3rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
details { margin: 0.5rem 0; } summary { cursor: pointer; padding: 0.3rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1rem; }
.wide { grid-column: 1 / -1; }
.examples { gap: 1rem; }
.example { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem; }
.example h3 { margin: 0 0 0.2rem; font-size: 1rem; } .example p { margin: 0 0 0.6rem; font-size: 0.9rem; }
dl { display: grid; grid-template-columns: minmax(8rem, auto) 1fr; gap: 0.2rem 1rem; font-size: 0.9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure on disk; `wide` ones take a line to themselves, and `folded` ones are opened by a click."""

    file: Path
    caption: str
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers, ready to be read."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(
    path: Path,
    title: str,
    says: str,
    about: dict[str, Any],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    examples: Sequence[Example],
) -> None:
    """Write the page with everything inside it, whole or not at all."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(about['model'])}, {about['questions']} questions, {about['layers']} layers.</p>",
        f"<p>{escape(says)}</p>",
        f'<div class="pair">{"".join(_figure(picture) for picture in pictures if not picture.folded)}</div>',
        *(folded(picture.caption, _figure(picture)) for picture in pictures if picture.folded),
        *_examples(examples),
        "<h2>Numbers</h2>",
        *(folded(table.caption, table_of(table)) for table in tables),
        "<h2>Settings</h2>",
        _settings(about),
    ]
    write_parts(path, title, parts)


def write_parts(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page of pieces of HTML, whole or not at all; it needs no other file."""
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
    )


def _image(file: Path, says: str) -> str:
    return image(file.read_bytes(), _KINDS[file.suffix], says)


def image(data: bytes, kind: str, says: str) -> str:
    """A picture as a piece of a page; `kind` is its media type, and `says` what stands for it where it is not seen."""
    return f'<img src="data:{kind};base64,{b64encode(data).decode()}" alt="{escape(says)}" loading="lazy">'


def _figure(picture: Picture) -> str:
    kind = ' class="wide"' if picture.wide else ""
    return f"<figure{kind}><figcaption>{escape(picture.caption)}</figcaption>{_image(picture.file, picture.caption)}</figure>"


def folded(title: str, content: str) -> str:
    """A piece of a page that is opened by a click on its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _examples(examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    return [
        "<h2>Where the [CLS] token and the language model agree most and least</h2>",
        "<p>The share of the strongest tenth of patches by [CLS] score that is also in the strongest tenth by the attention of "
        "the last token, a mean over layers. Of each pair the first drawing shows what would be kept, the last one all "
        "values, from dark to yellow.</p>",
        f'<div class="pair examples">{"".join(map(_example, examples))}</div>',
    ]


def _example(example: Example) -> str:
    by = "by [CLS] score", "by attention of the last token"
    images = [
        f"<figure><figcaption>{what}</figcaption>{_image(f, what)}</figure>" for f, what in zip(example.files, by, strict=True)
    ]
    return f'<div class="example"><h3>{escape(example.title)}</h3><p>{escape(example.text)}</p>{"".join(images)}</div>'


def table_of(table: Table) -> str:
    """A table as a piece of a page."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headers)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _settings(about: dict[str, Any]) -> str:
    shown = {name: value for name, value in about.items() if name not in _LEFT_OUT}
    shown |= {"failed": len(about["failures"]), **about["versions"], "command": about["command"]}
    return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in shown.items()) + "</dl>"
