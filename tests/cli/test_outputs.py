"""A place that cannot be written is found before the work: nothing was read, nothing is left."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from soul_deploy.base.errors import FileWriteError, PathKindError
from soul_deploy.base.files import require_writable
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data

SMALL = "-m spikingvgg5 --hidden 4 -dataset digits -T 2 --epochs 1 --threads 1"
STEM = "spikingvgg5_lif_digits_T2_2025"
NOT_MADE = Path("/proc/no-such-folder")
"""No folder can be made there, not even by root."""
TRAINERS = {
    "train": f"train {SMALL}",
    "structured": f"prune structured {SMALL}",
    "unstructured": f"prune unstructured {SMALL}",
}


@pytest.fixture(autouse=True)
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty folder with a file, `plain`; the data sets that were read."""
    names: list[str] = []
    whole = load_data("digits", Path("."))

    def few(data_dir: Path, download: bool) -> Data:
        names.append("digits")
        part = whole.train.select(torch.arange(32))
        return Data("digits", part, part, part, whole.classes, whole.normalization)

    monkeypatch.setitem(READERS, "digits", few)
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("no model, no graph, no weights")
    return names


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


def tree() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def assert_refused(result: Result, named: str, code: int, before: list[str]) -> None:
    """Refused by name, before anything was read, trained or made."""
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert named in line
    assert tree() == before


@pytest.mark.parametrize("command", TRAINERS)
@pytest.mark.parametrize("flag", ["--model_dir", "--log_dir"])
@pytest.mark.parametrize(
    ("folder", "code", "why"),
    [
        (Path("plain/models"), 2, "plain is not a folder; give another place"),
        (NOT_MADE / "models", 1, "No such file or directory. Nothing was begun"),
        (Path("long" * 70), 1, "File name too long. Nothing was begun"),
    ],
)
def test_training_does_not_begin(
    read: list[str], command: str, flag: str, folder: Path, code: int, why: str
) -> None:
    before = tree()
    result = call(*TRAINERS[command].split(), flag, str(folder))
    assert_refused(result, why, code, before)
    assert str(folder) in result.stderr and read == []


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("train", [f"best_{STEM}.safetensors", f"checkpoints/train_{STEM}/00000001.safetensors"]),
        (
            "structured",
            [
                f"best_{STEM}.safetensors",
                f"pruned_{STEM}.safetensors",
                f"pruned_{STEM}_compact.safetensors",
                f"checkpoints/structured_{STEM}/00000001.safetensors",
            ],
        ),
        (
            "unstructured",
            [
                f"pruned_{STEM}.safetensors",
                f"pruned_{STEM}_compact.safetensors",
                f"checkpoints/unstructured_{STEM}/00000001.safetensors",
            ],
        ),
    ],
)
def test_each_file_of_a_run_is_looked_at(read: list[str], command: str, files: list[str]) -> None:
    """A run that is let begin makes these files, so the list above is what there is to look at."""
    for name in files:
        inside = Path("saved_models") / name / "inside"
        inside.mkdir(parents=True)
        named = f"saved_models/{name}" if "check" not in name else "saved_models/checkpoints"
        before = tree()
        if "check" in name:  # the number goes on after a folder of this name; a file is in the way
            inside.rmdir()
            inside.parent.rmdir()
            inside.parent.parent.rmdir()
            inside.parent.parent.touch()
            before = tree()
        assert_refused(call(*TRAINERS[command].split()), named, 2, before)
        for path in sorted(Path("saved_models").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert read == []
    result = call(*TRAINERS[command].split())
    assert result.exit_code == 0, result.output
    made = {str(path.relative_to("saved_models")) for path in Path("saved_models").rglob("*.s*")}
    checkpoints = {name for name in made if name.startswith("checkpoints")}
    assert made - checkpoints == {name for name in files if not name.startswith("checkpoints")}


def test_a_dry_run_needs_no_place(read: list[str]) -> None:
    words = ["--dry_run", "--model_dir", str(NOT_MADE)]
    result = call(*TRAINERS["structured"].split(), *words)
    assert result.exit_code == 0, result.output


WRITERS = (
    "export onnx plain",
    "export event plain",
    "export nir plain",
    "prune compact plain",
    "import nir plain",
    "import torch torch.nn:Flatten --model_path plain -dataset digits",
    "bench sparse --event plain",
    "bench sparse --reference",
)


@pytest.mark.parametrize("line", WRITERS)
def test_nothing_is_read_for_a_place_that_cannot_be_written(read: list[str], line: str) -> None:
    """`plain` is no file that these commands can read; they do not come so far."""
    Path("folder").mkdir()
    before = tree()
    for output, code, why in (
        (NOT_MADE / "out", 1, f"{NOT_MADE}/out cannot be written: No such file or directory"),
        (Path("x" * 250), 1, "cannot be written: File name too long. Nothing was begun"),
        (Path("folder"), 2, "folder is a folder, and what is written is a file"),
        (Path("plain/out"), 2, "plain/out cannot be written: plain is not a folder"),
    ):
        assert_refused(call(*line.split(), "-o", str(output)), why, code, before)
    assert read == []
    if "plain" in line:
        result = call(*line.split(), "-o", "new/place")  # one that can: now it is read
        assert result.exit_code and "plain" in result.stderr and "written" not in result.stderr


def test_the_second_file_of_an_export_is_looked_at() -> None:
    Path("out.currents.onnx").mkdir()
    words = ["export", "onnx", "plain", "--mode", "step", "--static_input", "current"]
    result = call(*words, "-o", "out.onnx")
    assert_refused(result, "out.currents.onnx is a folder", 2, ["out.currents.onnx", "plain"])


def test_the_demo_looks_at_its_folder() -> None:
    for folder, code, why in (
        (NOT_MADE, 1, "No such file or directory. Nothing was begun"),
        (Path("plain/demo"), 2, "plain is not a folder"),
    ):
        assert_refused(call("demo", "-o", str(folder)), why, code, ["plain"])


def test_nothing_of_the_look_stays(tmp_path: Path) -> None:
    kept = tmp_path / "there"
    kept.mkdir()
    old = kept / "old"
    old.write_text("old")
    require_writable(old, kept / "a" / "b" / "file", tmp_path / "c" / "file")
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "plain", "there"]
    with pytest.raises(FileWriteError, match="File name too long"):
        require_writable(kept / "a" / ("x" * 300) / "file")
    with pytest.raises(PathKindError, match="is a folder"):
        require_writable(old, kept)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "plain", "there"]
