"""No link is dead: those between READMEs, to files and to headings; of pages elsewhere only the form is looked at."""

import re
from pathlib import PurePosixPath

import pytest

from scripts.docs import ADDRESS, RAW
from tests.support import readmes

FILES = [*readmes.readmes(), "CONTRIBUTING.md", "CHANGELOG.md"]
OURS = re.compile(rf"(?:{re.escape(ADDRESS)}/(?:tree|blob)|{re.escape(RAW)})/main/(.*)")
ELSEWHERE = re.compile(r"https://[\w.-]+\.[a-z]+(/[^\s\"'<>]*)?")


def target(name, link):
    """The file or folder of the project that a link names, and the heading there."""
    ours = OURS.fullmatch(link)
    path, _, anchor = (ours[1] if ours else link).partition("#")
    start = readmes.ROOT if ours else (readmes.ROOT / name).parent
    return (start / path) if path else readmes.ROOT / name, anchor


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name):
    for link in readmes.links(readmes.ROOT / name):
        if "://" in link and not OURS.fullmatch(link):
            assert ELSEWHERE.fullmatch(link), f"{name}: {link}"
            continue
        path, anchor = target(name, link)
        assert path.exists(), f"{name}: {link}"
        if anchor:
            page = path / "README.md" if path.is_dir() else path
            assert anchor in readmes.anchors(page), f"{name}: {link}"


def test_the_first_readme_is_whole_on_other_sites():
    for link in readmes.links(readmes.ROOT / "README.md"):
        assert link.startswith("https://"), f"{link} works in the repository only; begin it with {ADDRESS} or {RAW}."


def test_pictures_are_raw_files_and_all_else_is_a_page():
    text = (readmes.ROOT / "README.md").read_text(encoding="utf-8")
    for shown, link in re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text):
        if OURS.fullmatch(link):
            assert link.startswith(RAW) == bool(shown), link
            path, _ = target("README.md", link)
            assert "/tree/" not in link or path.is_dir(), link
            assert "/blob/" not in link or path.is_file(), link


def test_every_guide_can_be_reached_from_the_first_readme():
    links = [OURS.fullmatch(link) for link in readmes.links(readmes.ROOT / "README.md")]
    reached = {hit[1].partition("#")[0] for hit in links if hit}
    guides = {str(PurePosixPath(name).parent) for name in readmes.readmes() if "models/" not in name and "/" in name}
    assert guides <= reached
