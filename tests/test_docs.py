"""The code in the documentation runs as it stands."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
import torch
from places import ROOT

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_every_file_that_a_document_names_exists() -> None:
    """A name with a folder is a path from the root or from `soul_deploy`; one without is a leaf."""
    files = {
        str(path.relative_to(ROOT))
        for folder in (
            "soul_deploy",
            "prune",
            "export",
            "runtime",
            "tests",
            "benchmarks",
            "examples",
        )
        for path in (ROOT / folder).rglob("*.py")
    }
    files |= {f"soul_deploy/{name}" for name in files}
    leaves = {path.rpartition("/")[2] for path in files}
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    pages += [*ROOT.glob("soul_deploy/*/README.md"), ROOT / "runtime" / "README.md"]
    named = 0
    for page in pages:
        for name in re.findall(r"(?<![\w/.])([a-z_/]+\.py)\b", page.read_text()):
            named += 1
            known = name in files or f"soul_deploy/{name}" in files or name in leaves
            assert known or (page.parent / name).exists(), f"{page.name} names {name}"
    assert named > 60


def test_the_worked_example_of_counting() -> None:
    outcome = doctest.testfile(str(ROOT / "docs" / "counting.md"), module_relative=False)
    assert outcome.attempted > 15
    assert outcome.failed == 0


def test_bring_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("bring-your-own.md")
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    left = runpy.run_path("example.py")
    printed = capsys.readouterr().out
    assert "'0.weight': (8, 1, 3, 3)" in printed and "'5.weight': (10, 288)" in printed
    assert left["report"].passed and printed.count("passed") >= 2
    assert {"net.safetensors", "net.onnx", "net.event.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
