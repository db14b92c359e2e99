"""The READMEs of the project: their code blocks, headings and links."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^ *(`{3,})(\w*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def readmes():
    """Every README.md of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "README.md", "*/README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    found = listed or [str(path.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/README.md")] + ["README.md"]
    return sorted(name for name in found if (ROOT / name).is_file())


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the line of the file on which the text starts."""

    language: str
    text: str
    line: int


def blocks(name, language=None):
    """The code blocks of a README, in their order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [Block(hit[2], hit[3], text.count("\n", 0, hit.start(3)) + 1) for hit in _FENCE.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def with_blocks(language):
    """The READMEs that have a code block in this language."""
    return [name for name in readmes() if blocks(name, language)]


def prose(path):
    """The text of a Markdown file without its code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8")))


def links(path):
    """The targets of all links and pictures of a Markdown file."""
    return _LINK.findall(prose(path))


def anchors(path):
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}
