"""The notebook in examples/ runs from top to bottom, and is committed without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as conftest.py has it for this process
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    assert sum("<table>" in data.get("text/html", "") for data in shown) >= 4
    assert sum("image/png" in data for data in shown) == 1
    assert "passed" in str([data.get("text/html") for data in shown])
    printed = [o.text for cell in cells for o in cell.outputs if o.output_type == "stream"]
    assert printed == []
