"""What READMEs show works: Python blocks run, in order and in one namespace a file; shell blocks run or are understood.

A command runs where it needs no model, or is limited to a few questions. Of any other the words are given to the program that
it names, which parses them and stops there. Where a block loads a checkpoint of billions of parameters by its name on the hub,
a tiny model stands in for it; a block of some other language is only shown.
"""

import shlex

import pytest
from PIL import Image

from tests.support import readmes, shell_blocks, stand_ins
from tests.support.clips import numbered_frames, write_clip
from tests.support.commands import run_command

SHOWN = {"", "text", "bibtex", "json"}  # the languages of blocks that nothing runs


@pytest.fixture(autouse=True)
def a_folder_of_the_readers(tmp_path, monkeypatch):
    """Where the blocks run: a folder with a picture and a clip, from which the checkout can be seen."""
    monkeypatch.chdir(tmp_path)
    for name in ("playground", "scripts", "tests"):
        (tmp_path / name).symlink_to(readmes.ROOT / name)
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "street.jpg")
    write_clip(tmp_path / "clip.mp4", numbered_frames(16))


@pytest.mark.parametrize("name", readmes.with_blocks("python"))
def test_python_blocks_run(name, monkeypatch):
    stand_ins.put(monkeypatch)
    space = {"__name__": "__main__"}
    for block in readmes.blocks(name, "python"):
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(readmes.ROOT / name), "exec"), space)


@pytest.mark.parametrize("name", readmes.with_blocks("bash"))
def test_shell_blocks_run_or_are_understood(name, monkeypatch, capsys):
    for block in readmes.blocks(name, "bash"):
        for variables, words in shell_blocks.commands(block.text):
            shell_blocks.check(variables, words, monkeypatch)
            if shell_blocks.is_light(words):
                code, _, err = run_command(monkeypatch, capsys, *words[1:])
                assert code in (0, None), f"{name}:{block.line}: {shlex.join(words)}\n{err}"


@pytest.mark.parametrize("name", readmes.readmes())
def test_every_block_says_what_it_is(name):
    languages = {block.language for block in readmes.blocks(name)}
    assert languages <= {"python", "bash", *SHOWN}


def test_the_readme_is_short():
    assert len((readmes.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
