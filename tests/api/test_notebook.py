"""The notebooks in examples/ run from top to bottom, and are committed without outputs."""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

FIRST = ROOT / "examples" / "dense_to_deployed.ipynb"
OTHERS = sorted(set((ROOT / "examples").glob("*.ipynb")) - {FIRST})


def shown_by(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the cells of a notebook show, run in folder/examples; nothing is printed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as conftest.py has it for this process
    (folder / "examples").mkdir()
    (folder / "tests").symlink_to(ROOT / "tests")
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    place = {"metadata": {"path": folder / "examples"}}
    NotebookClient(notebook, timeout=600, resources=place).execute()
    printed = [o.text for cell in cells for o in cell.outputs if o.output_type == "stream"]
    assert printed == []
    return [output.get("data", {}) for cell in cells for output in cell.outputs]


def tables(shown: list[dict[str, Any]]) -> int:
    return sum("<table>" in data.get("text/html", "") for data in shown)


def test_a_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_by(FIRST, tmp_path, monkeypatch)
    assert tables(shown) >= 4
    assert sum("image/png" in data for data in shown) == 1
    assert "passed" in str([data.get("text/html") for data in shown])


@pytest.mark.soak
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_the_other_notebooks_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem == "from_spikingjelly":
        pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")
    if path.stem == "from_snntorch":
        pytest.importorskip("snntorch", reason="the extra interop installs it")
    shown = shown_by(path, tmp_path, monkeypatch)
    assert tables(shown) >= 1
    texts = [data.get("text/html", "") for data in shown]
    assert any("passed" in text for text in texts)
    assert not any("failed" in text for text in texts)
