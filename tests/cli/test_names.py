"""Names from outside are shown as they are: no markup, no emoji, no control characters; one module
prints, and rich draws tables only.
"""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_output import small_model

import soul_deploy
from soul_deploy.base.files import file_sha256
from soul_deploy.base.terminal import CONTROLS, one_line, visible
from soul_deploy.cli.main import root
from soul_deploy.cli.output import text_table
from soul_deploy.export.event.build import export_event
from soul_deploy.model.file import save
from soul_deploy.model.model import Model

TRICKS = "a[b][/] [red]:smile: \x1b[31m\x07\u202e\u2028"
SHOWN = "a[b][/] [red]:smile: \\x1b[31m\\x07\\u202e\\u2028"
FILE = "x[y][bold]:cat:\x1b[2J\nz"
FILE_SHOWN = "x[y][bold]:cat:\\x1b[2J\\nz"
CHECK = ("--input", "random", "--samples", 2, "--threads", 1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, its event network and an input, all with names that mean something elsewhere."""
    monkeypatch.chdir(tmp_path)
    model = tricky_model()
    save(model, Path(f"{FILE}.safetensors"))
    sha256 = file_sha256(Path(f"{FILE}.safetensors"))
    export_event(model, Path(f"{FILE}.event.safetensors"), source_sha256=sha256)
    np.save(f"{FILE}.npy", np.zeros((1, 1, 32, 32), np.uint8))
    return tmp_path


def tricky_model() -> Model:
    model = small_model()
    info = replace(
        model.info,
        classes=tuple(TRICKS + str(i) for i in range(10)),
        provenance={"model": TRICKS, TRICKS: TRICKS},
    )
    return replace(model, info=info)


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(root, list(map(str, words)))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    for text in (result.stdout, result.stderr):
        assert not CONTROLS.search(text), repr(text)
        assert "😄" not in text and "🐈" not in text and "🐱" not in text
    return result


def test_run_shows_files_and_classes(place: Path) -> None:
    words = ("run", f"{FILE}.event.safetensors", f"{FILE}.npy")
    for extra in ((), ("--stream",), ("--counts", "--top", 3)):
        shown = run(*words, *extra).stdout
        assert f"{FILE_SHOWN}.npy" in shown and SHOWN in shown
    found = json.loads(run(*words, "--format", "json").stdout)
    assert found["results"][0]["input"].startswith(f"{FILE}.npy")
    assert found["results"][0]["top"][0]["class"].startswith(TRICKS)


@pytest.mark.parametrize("suffix", ["safetensors", "event.safetensors", "onnx"])
def test_inspect_shows_paths_classes_and_what_a_file_says_of_itself(
    place: Path, suffix: str
) -> None:
    if suffix == "onnx":
        run("export", "onnx", f"{FILE}.safetensors", *CHECK)
    shown = run("inspect", f"{FILE}.{suffix}").stdout
    assert f"{FILE_SHOWN}.{suffix}" in shown and SHOWN in shown


@pytest.mark.parametrize("kind", ["onnx", "event", "nir"])
def test_exports_and_verify_show_paths(place: Path, kind: str) -> None:
    result = run("export", kind, f"{FILE}.safetensors", "-o", f"out/{FILE}.{kind}", *CHECK)
    assert f"out/{FILE_SHOWN}.{kind}" in result.stdout
    shown = run("verify", f"{FILE}.safetensors", f"out/{FILE}.{kind}", *CHECK).stdout
    assert f"out/{FILE_SHOWN}.{kind} against its model" in shown


def test_bench_shows_what_it_is_given(place: Path) -> None:
    few = ("--iterations", 1, "--warmup", 0, "--no_fresh", "-o", f"{FILE}.json")
    words = ("bench", "sparse", "--event", f"{FILE}.event.safetensors", *few)
    shown = run(*words, "--input", f"{FILE}.npy").stdout
    assert f"Input: {FILE_SHOWN}.npy" in shown and f"Wrote {FILE_SHOWN}.json" in shown


def test_energy_and_compact_show_paths(place: Path) -> None:
    data = ("--dataset_name", "digits")
    refused = run("energy", f"{FILE}.safetensors", *data, code=2)
    assert "digits has images of (1, 8, 8)" in refused.stderr
    result = run("prune", "compact", f"{FILE}.safetensors", "-o", f"{FILE}.out")
    assert f"{FILE_SHOWN}.out" in result.stdout and f"{FILE_SHOWN}.out" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        *(("inspect", TRICKS), ("run", TRICKS, TRICKS), ("verify", TRICKS, TRICKS)),
        *(("export", "onnx", TRICKS), ("export", "nir", TRICKS), ("import", "nir", TRICKS)),
        *(("prune", "compact", TRICKS), ("bench", "sparse", "--event", TRICKS)),
        *(("train", "--model", TRICKS), ("train", "--dataset_name", TRICKS), (TRICKS,)),
        *(("prune", TRICKS), ("run", TRICKS, "x.npy"), ("energy", TRICKS)),
        ("prune", "structured", "--mode", "load", "--model_path", TRICKS),
        ("inspect", "a", TRICKS),
    ],
)
def test_errors_show_what_was_given(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words, code=2)
    assert "[b][/] [red]:smile: " in result.stderr and "Traceback" not in result.stderr


def test_a_table_shows_title_columns_and_cells_as_they_are() -> None:
    text = text_table(TRICKS, ["layer", f"{TRICKS}\n"], [[TRICKS, "[/]"], ["\udcff", "x\ny"]])
    title, _, columns, *rest = text.splitlines()
    assert title == SHOWN and f"{SHOWN}\\n" in columns
    assert SHOWN in rest[1] and "[/]" in rest[1]
    assert "\\xff" in rest[2] and "x\\ny" in rest[2]


def test_control_characters_by_hand() -> None:
    assert visible("a\tb\x9b\x7f\nc\ufeffé猫\u200d") == "a\\tb\\x9b\\x7f\nc\\ufeffé猫\u200d"
    assert one_line("Verified: yes\r\nx") == "Verified: yes\\r\\nx"


def sources() -> list[Path]:
    package = Path(soul_deploy.__file__).parent
    return sorted({path.resolve() for path in package.rglob("*.py")} | below(package))


def below(package: Path) -> set[Path]:
    """Files of the folders that are links in a checkout."""
    folders = (package / name for name in ("prune", "export", "runtime"))
    return {path.resolve() for folder in folders for path in folder.rglob("*.py")}


def uses(tree: ast.AST) -> set[str]:
    """Ways to print around soul_deploy/base/terminal.py, and rich."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add(module.partition(".")[0])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    forbidden = {"print", "rich", "click.echo", "click.secho", "sys.stdout", "sys.stderr"}
    forbidden |= {"sys.__stdout__", "sys.__stderr__", "click.echo_via_pager", "click.progressbar"}
    return found & forbidden


def test_one_module_prints_and_rich_draws_tables_only() -> None:
    paths = sources()
    assert len(paths) > 150
    found = {
        f"{path.parent.name}/{path.name}": uses(ast.parse(path.read_text(encoding="utf-8")))
        for path in paths
    }
    assert found.pop("base/terminal.py") == {"sys.stdout", "sys.stderr"}
    assert found.pop("cli/output.py") == {"rich"}
    assert not {name: used for name, used in found.items() if used}


def test_the_scan_finds_what_it_looks_for() -> None:
    text = (
        "import rich.table\nfrom click import echo\nprint(1)\nclick.secho(2)\nsys.stderr.write(3)"
    )
    expected = {"rich", "click.echo", "print", "click.secho", "sys.stderr"}
    assert uses(ast.parse(text)) == expected
