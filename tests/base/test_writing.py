"""Faults at every step of writing a file: the folder holds what the message says, and no more."""

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from deployed import Files, make_files

from soul_deploy.base import files
from soul_deploy.base.errors import FileWriteError, UnconfirmedWriteError
from soul_deploy.base.files import write_text
from soul_deploy.cli.main import root

NUMBERS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES]
BEFORE = {  # the rename: step -> what is called, which call fails, whether it is done all the same
    "the folder": ("pathlib.Path.mkdir", 1, False),
    "the temporary file": ("tempfile.mkstemp", 1, False),
    "closing it": ("os.close", 1, True),
    "opening it to write": ("pathlib.Path.write_text", 1, False),
    "writing, or flushing what was written": ("pathlib.Path.write_text", 1, True),
    "opening it to flush it": ("pathlib.Path.open", 1, False),
    "flushing it to the disk": ("os.fsync", 1, False),
    "closing it again": ("CLOSE", 1, True),
    "its permissions": ("pathlib.Path.chmod", 1, False),
    "the rename": ("os.replace", 1, False),
}
AFTER = {
    "the rename reported as failed": ("os.replace", 1, True),
    "opening the folder": ("FOLDER", 1, False),
    "flushing the folder": ("os.fsync", 2, False),
    "closing the folder": ("os.close", 2, True),
}


class Closing:
    """A stream whose close reports an error, as a network's file system does."""

    def __init__(self, stream: Any, fail: Callable[[], None]) -> None:
        self.stream, self.fail = stream, fail

    def __enter__(self) -> Any:
        return self.stream

    def __exit__(self, *_: Any) -> None:
        self.stream.close()
        self.fail()


def inject(monkeypatch: pytest.MonkeyPatch, step: tuple[str, int, bool], number: int) -> list[int]:
    """Let a call fail with an error of the system; the list tells how often it was called."""
    name, nth, done = step
    calls: list[int] = []
    target = {"CLOSE": "pathlib.Path.open", "FOLDER": "os.open"}.get(name, name)
    module, _, rest = target.partition(".")
    owner: Any = importlib.import_module(module)
    *inner, attribute = rest.split(".")
    for part in inner:
        owner = getattr(owner, part)
    original = getattr(owner, attribute)

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    def call(*given: Any, **more: Any) -> Any:
        if name == "FOLDER" and not os.path.isdir(given[0]):
            return original(*given, **more)
        calls.append(1)
        if len(calls) != nth:
            return original(*given, **more)
        if name == "CLOSE":
            return Closing(original(*given, **more), fail)
        if done:
            original(*given, **more)
        return fail()

    monkeypatch.setattr(owner, attribute, call)
    return calls


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("step", BEFORE)
def test_a_fault_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with monkeypatch.context() as patched:
        calls = inject(patched, BEFORE[step], number)
        with pytest.raises(FileWriteError) as caught:
            write_text(path, "new")
    assert len(calls) >= BEFORE[step][1]
    said = f"cannot be written: {os.strerror(number)}. Free some space or give another place; "
    assert str(caught.value) == f"{path} {said}what was there is unchanged"
    assert caught.value.exit_code == 1
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["result.txt"])


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("step", AFTER)
def test_a_fault_after_the_rename_says_that_the_new_file_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with monkeypatch.context() as patched:
        inject(patched, AFTER[step], number)
        with pytest.raises(UnconfirmedWriteError) as caught:
            write_text(path, "new")
    said = str(caught.value)
    assert said.startswith(f"{path} is written and in place, but the system did not confirm that")
    assert os.strerror(number) in said and "unchanged" not in said
    assert caught.value.exit_code == 1
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", ["result.txt"])


@pytest.mark.parametrize("number", sorted(files.NOT_OFFERED), ids=lambda n: errno.errorcode[n])
def test_a_file_system_without_fsync_of_folders_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "result.txt"
    calls = inject(monkeypatch, AFTER["flushing the folder"], number)
    write_text(path, "new")
    assert (len(calls), path.read_text(), os.listdir(tmp_path)) == (2, "new", ["result.txt"])


def test_windows_opens_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There `os.open` of a folder is refused, so that every write ended in an error."""
    path = tmp_path / "result.txt"
    monkeypatch.setattr(files, "FOLDERS_CAN_BE_SYNCED", False)
    calls = inject(monkeypatch, AFTER["opening the folder"], errno.EACCES)
    for text in ("old", "new"):
        write_text(path, text)
    assert (calls, path.read_text(), os.listdir(tmp_path)) == ([], "new", ["result.txt"])


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that becomes read-only half way keeps what was begun."""
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with monkeypatch.context() as patched:
        inject(patched, BEFORE["flushing it to the disk"], errno.EIO)
        inject(patched, ("pathlib.Path.unlink", 1, False), errno.EROFS)
        with pytest.raises(FileWriteError) as caught:
            write_text(path, "new")
    (left,) = set(os.listdir(tmp_path)) - {"result.txt"}
    said = f"the unfinished {tmp_path / left} could not be removed ({os.strerror(errno.EROFS)})"
    assert str(caught.value).endswith(f"what was there is unchanged; {said}")
    assert path.read_text() == "old"


def test_a_command_tells_both_kinds_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune compact` into a folder that may not be listed, and on a full disk."""
    given: Files = make_files(tmp_path / "in")
    target = tmp_path / "out" / "made.safetensors"
    words = ["prune", "compact", str(given.masked), "-o", str(target)]
    for number, step, kept, text in (
        (errno.ENOSPC, BEFORE["flushing it to the disk"], False, "what was there is unchanged"),
        (errno.EACCES, AFTER["opening the folder"], True, "is written and in place"),
    ):
        with monkeypatch.context() as patched:
            inject(patched, step, number)
            done = CliRunner().invoke(root, words)
        assert (done.exit_code, text in done.stderr) == (1, True)
        assert (target.exists(), len(os.listdir(target.parent))) == (kept, int(kept))
