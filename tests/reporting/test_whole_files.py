"""Files are written whole or not at all."""

import os

import pytest

from fastervlm.reporting.files import whole, write_text


def test_a_file_is_put_in_place_by_its_name(tmp_path):
    """Who has the old file open, or another name for it, keeps it as it was."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    os.link(path, other)
    write_text(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "old")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
