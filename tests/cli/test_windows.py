"""Windows, imitated: commands do their work without what is missing there, and a file that is open
or mapped, which Windows neither replaces nor removes, is an error that says so or stays for later.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT, SUPPORT, TESTS
from test_data import write_mnist_folder
from test_next import NETS
from test_output import small_model

from soul_deploy.base import files
from soul_deploy.base.errors import FileWriteError
from soul_deploy.base.files import remove_unless_open, temporary_folder, write_text
from soul_deploy.model.file import save

CHILD = """
import json, sys
import windows
windows.imitate()
from soul_deploy.cli.main import root
for words in json.loads(sys.argv[1]):
    print("::", *words, flush=True)
    root.main(words, standalone_mode=False)
"""
REPLACED = """
import sys
import windows
windows.imitate()
from pathlib import Path
from soul_deploy import export_event, load, load_network
from soul_deploy.base.errors import FileWriteError
target, model = Path(sys.argv[2]), load(sys.argv[1])
export_event(model, target)
before, network = target.read_bytes(), load_network(target)
try:
    export_event(model, target)
except FileWriteError as error:
    print(error)
assert target.read_bytes() == before and len(list(target.parent.glob(".*.tmp"))) == 0
del network
export_event(model, target)
"""
SHORT = ("--threads", "1", "--epochs", "3", "--model_dir", "out", "--dataset_name", "mnist")
CHECK = ("--samples", "2", "--threads", "1")
TRAIN = ("train", "--model", "somenets:make", "-T", "2", *SHORT, "--save_steps", "1")
COMMANDS = [
    TRAIN,
    (*TRAIN, "--resume", "auto"),
    ("prune", "structured", "--mode", "load", "--model_path", "net.safetensors", *SHORT),
    ("prune", "compact", "net.safetensors", "-o", "small"),
    ("export", "event", "net.safetensors", "-o", "net.event", *CHECK),
    ("export", "event", "net.safetensors", "-o", "net.event", *CHECK),
    ("export", "onnx", "net.safetensors", "-o", "net.onnx", *CHECK),
    ("export", "nir", "net.safetensors", "-o", "net.nir", *CHECK),
    ("import", "nir", "net.nir", "-o", "back"),
    ("verify", "net.safetensors", "net.event", *CHECK),
    ("energy", "net.safetensors", *CHECK),
    ("inspect", "net.event"),
    ("run", "net.event", "x.npy"),
    (
        "bench",
        "sparse",
        "--model",
        "net.safetensors",
        "--iterations",
        "1",
        "--warmup",
        "0",
        "-o",
        "times",
    ),
]


def child(folder: Path, code: str, *words: str) -> str:
    """What a process printed that met Windows' errors."""
    paths = (ROOT, SUPPORT, TESTS / "cli", folder)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words], cwd=folder, capture_output=True,
        text=True, env=environment | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="open files are found in /proc")
def test_all_commands_work(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "net.safetensors")
    (tmp_path / "somenets.py").write_text(NETS)
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 32, 32), np.uint8))
    write_mnist_folder(tmp_path / "data", "")
    printed = child(tmp_path, CHILD, json.dumps(COMMANDS))
    assert printed.count("::") == len(COMMANDS)
    times = json.loads((tmp_path / "times").read_text())
    assert times["environment"]["load_average"] is None
    for folder in (tmp_path / "out" / "checkpoints").iterdir():
        assert len(list(folder.iterdir())) == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="open files are found in /proc")
def test_a_network_that_is_loaded_is_not_replaced_and_the_error_says_why(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "net.safetensors")
    said = child(tmp_path, REPLACED, "net.safetensors", "net.event")
    assert "net.event cannot be written: Access is denied. Close what has it open" in said
    assert "what was there is unchanged" in said


def refusing(times: int, action: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """`action`, which fails as often as that, as for a file that is open elsewhere."""
    calls: list[int] = []

    def do(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise PermissionError(errno.EACCES, "Access is denied")
        return action(*given, **more)

    return do, calls


def test_a_file_that_a_scanner_holds_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    for windows, text in ((True, "new"), (False, "old")):
        write_text(path, "old")
        monkeypatch.setattr(files, "WINDOWS", windows)
        with monkeypatch.context() as patch:
            replace, calls = refusing(2, os.replace)
            patch.setattr(os, "replace", replace)
            if windows:
                write_text(path, "new")
            else:
                with pytest.raises(FileWriteError, match="Free some space"):
                    write_text(path, "new")
        assert (path.read_text(), len(calls)) == (text, 3 if windows else 1)
        monkeypatch.setattr(files, "WINDOWS", False)


def test_a_file_that_stays_open_is_an_error_after_some_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(files, "WINDOWS", True)
    replace, calls = refusing(9, os.replace)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(FileWriteError, match="Close what has it open, this program too, or"):
            write_text(path, "new")
    assert (path.read_text(), len(calls), os.listdir(tmp_path)) == ("old", 3, ["result.txt"])


def test_what_is_open_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.safetensors"
    path.touch()
    remove, _ = refusing(2, Path.unlink)
    monkeypatch.setattr(Path, "unlink", remove)
    with pytest.raises(PermissionError):
        remove_unless_open(path)
    monkeypatch.setattr(files, "WINDOWS", True)
    remove_unless_open(path)
    assert path.exists()
    remove_unless_open(path)
    assert not path.exists()
    remove_unless_open(path)


def test_a_temporary_folder_may_keep_what_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
    remove, _ = refusing(99, os.unlink)
    with monkeypatch.context() as patch:
        with temporary_folder() as folder:
            (Path(folder) / "mapped").touch()
            patch.setattr(os, "unlink", remove)
        assert Path(folder, "mapped").exists()
    Path(folder, "mapped").unlink()
    Path(folder).rmdir()
