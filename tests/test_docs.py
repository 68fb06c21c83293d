"""The code in the documentation runs as it stands."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
import torch
from places import ROOT

import soul_deploy
from soul_deploy.base.container import DTYPES
from soul_deploy.runtime.format import layer_codec
from soul_deploy.runtime.format.file import FORMATS

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


def test_every_place_that_the_architecture_names_exists() -> None:
    """Folders too, the packages of its map, all of them, and modules by their dotted names."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    roots = (ROOT, ROOT / "soul_deploy")
    named = {name for name in re.findall(r"`([\w./]+)`", text) if "/" in name}
    packages = "|".join(path.parent.name for path in (ROOT / "soul_deploy").glob("*/__init__.py"))
    dotted = re.findall(rf"`((?:{packages})(?:\.\w+)+)`", text)
    named |= {name if name.endswith(".py") else name.replace(".", "/") + ".py" for name in dotted}
    assert len(named) > 50
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert missing == []
    block = text[text.index("## The place of things") :].split("```")[1]
    for line in re.sub(r"\n +", " ", block.strip()).splitlines():
        folder, _, listed = line.partition("/ ")
        words = re.findall(r"[a-z_.]+", re.sub(r"\(.*?\)", "", listed))
        found = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
        assert found - {"prune", "export", "runtime"} <= set(words), folder
        for word in words:
            place = ROOT / folder / word
            assert place.exists() or place.with_name(f"{word}.py").exists(), f"{folder}/{word}"


def test_the_python_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for name in dir(soul_deploy):
        if name not in ("__version__", "errors", "layers", "load_network"):
            assert f"\n::: soul_deploy.{name}\n" in text, name


def test_every_page_is_in_the_site() -> None:
    """`make docs` checks what pages link; here that the list of pages is whole."""
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


def test_the_demo_takes_as_long_everywhere() -> None:
    """11.6 minutes were measured on 2 cores."""
    places = {
        "README.md": r"`make demo` ends with this table \(about (\d+) minutes",
        "Makefile": r"^demo: .* about (\d+) minutes on 2 cores",
        "soul_deploy/cli/demo.py": r"About (\d+) minutes on 2 cores",
    }
    for name, pattern in places.items():
        assert re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE) == ["12"], name


def test_the_worked_example_of_counting() -> None:
    outcome = doctest.testfile(str(ROOT / "docs" / "counting.md"), module_relative=False)
    assert outcome.attempted > 15
    assert outcome.failed == 0


def test_bring_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = blocks("bring-your-own.md")
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


def test_bring_your_own_of_snntorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("snntorch", reason="the extra interop installs it")
    _, code = blocks("bring-your-own.md")
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = runpy.run_path("example.py")["model"]
    assert [node.name for node in model.graph.populations] == ["lif1", "lif2"]
    assert "untested" not in model.info.provenance


def test_troubleshooting_has_every_error_with_its_exit_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`\w+Error`[^|]*) \| ([\d, ]+) \|", text, re.MULTILINE)
    told: dict[str, str] = {}
    for cell, codes in rows:
        names = re.findall(r"`(\w+)`", cell)
        told |= dict(zip(names, codes.split(", ") * len(names), strict=False))
    found = {
        name: str(kind.exit_code)
        for name, kind in vars(soul_deploy.errors).items()
        if isinstance(kind, type) and name.endswith("Error") and hasattr(kind, "exit_code")
    }
    assert told.pop("InterruptedRunError") == "130"
    base = found.pop("SoulDeployError")
    assert base == "1" and told == found


def test_the_page_of_the_event_file_has_every_format_and_operation() -> None:
    text = (ROOT / "docs" / "event-format.md").read_text()
    operations = {kind.operation for kind in layer_codec.read_layer.kinds} - {"", "current_"}
    operations |= {
        prefix + join for prefix in ("", "current_") for join in ("convolution", "matrix")
    }
    for name in (*FORMATS, *operations):
        assert f"`{name}`" in text, name
    codes = re.findall(r'"([A-Z]\d+|BOOL)": "', text)
    assert set(codes) <= set(DTYPES) and len(codes) == 6
