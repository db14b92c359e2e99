"""Files are written whole or not at all."""

import errno
import os

import pytest

from encoders import UserError
from fastervlm.reporting.files import whole, write_text


def test_a_file_is_put_in_place_by_its_name(tmp_path):
    """Who has the old file open, or another name for it, keeps it as it was."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    os.link(path, other)
    write_text(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "old")


FAILURES = [
    (OSError(errno.ENOSPC, "disk full"), r"a\.txt cannot be written: disk full; make room and give the same command again"),
    (OSError(errno.EACCES, "not yours"), r"a\.txt cannot be written: not yours\.$"),
    (KeyboardInterrupt(), ""),
]


@pytest.mark.parametrize(("error", "sentence"), FAILURES)
def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, error, sentence):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(UserError if sentence else type(error), match=sentence or None):
        fail()
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
