"""Run the notebook and keep its outputs: `python -m playground.notebook` writes quickstart.ipynb anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "quickstart.ipynb"


def main() -> None:
    """Run it from its first cell to its last."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_small(output) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)
    print(f"Ran {NOTEBOOK}, {NOTEBOOK.stat().st_size // 1000} kB.")


def _small(output: Any) -> Any:
    """A picture once: where there is a JPEG, the PNG of ten times its size goes."""
    if "image/jpeg" in output.get("data", {}):
        output.data.pop("image/png", None)
    return output


if __name__ == "__main__":
    main()
