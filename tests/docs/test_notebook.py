"""The notebook runs from its first cell to its last, and what it shows is what it was committed with.

Times are left out. Shares of equal answers may differ by some of the 24 questions: processors prepare pictures with other
rounding, and by that the draw of `random` and the nearly undecided answers at few tokens change.
"""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import readmes

NOTEBOOK = readmes.ROOT / "playground" / "quickstart.ipynb"
MOST = 400_000  # bytes
SHARE = re.compile(r"\d+(?=%| % equal)")


def said(notebook):
    """What the code cells print, without the column of times."""
    outputs = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    text = "".join(each.text for each in outputs if each.get("name") == "stdout")
    return re.sub(r" +\d+$", "", text, flags=re.MULTILINE)


def words(text):
    """What is said, without the shares and the blanks that align them."""
    return SHARE.sub("", text).split()


def shares(text):
    return [int(share) for share in SHARE.findall(text)]


def pictures(notebook):
    """How many pictures each code cell shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sum(bool({"image/png", "image/jpeg"} & {*each.get("data", {})}) for each in cell.outputs) for cell in cells]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_and_shows_what_was_committed(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(readmes.ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    ran = nbformat.from_dict(committed)
    NotebookClient(ran, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert words(said(ran)) == words(said(committed))
    assert shares(said(ran)) == pytest.approx(shares(said(committed)), abs=17)  # 4 of 24 questions
    assert pictures(ran) == pictures(committed)
    assert sum(pictures(ran)) == 4


def test_it_is_small_and_installs_first(committed):
    assert NOTEBOOK.stat().st_size < MOST
    first = next(cell for cell in committed.cells if cell.cell_type == "code")
    assert "find_spec" in first.source
    assert "%pip install" in first.source
    assert not any("error" in each.output_type for cell in committed.cells for each in cell.get("outputs", []))
