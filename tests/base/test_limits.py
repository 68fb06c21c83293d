"""Memory limits, full disks, folders that can't be written: a clear error, the old file intact."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from deployed import Files, make_files, small_model
from fuzz_targets import with_generators
from places import ROOT

from soul_deploy.base.errors import (
    FileWriteError,
    LimitError,
    MissingFileError,
    PathKindError,
    UsageError,
)
from soul_deploy.base.files import require_file, write_atomically, write_tensors, write_text
from soul_deploy.base.memory import machine_memory, parse_bytes, require_memory
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network
from soul_deploy.model.file import load
from soul_deploy.prune.removal.apply import removal_bytes, remove
from soul_deploy.prune.removal.planner import plan_removal


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("limits"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4096", 4096), ("500MB", 500_000_000), ("2GiB", 2 << 30), (" 1.5 kib ", 1536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1TB", "1e9", "0.1", "9" * 40])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size; give bytes"):
        parse_bytes(text)


def test_no_size_means_what_the_machine_has() -> None:
    assert parse_bytes(None) is None
    assert machine_memory() > 1 << 28
    require_memory("this", machine_memory(), None, "")
    with pytest.raises(LimitError, match=r"this needs 1,[\d,]+ bytes of memory; allowed are"):
        require_memory("this", 1 << 60, None, "")


def test_explicit_rows_beyond_the_limit_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_event_network(small_model(), representation="explicit")
    rows = network.spiking_layers[0].synapses.rows
    sizes = [array.nbytes for array in rows.arrays]
    bias = network.spiking_layers[0].synapses.bias
    needed = sum(sizes) + (0 if bias is None else bias.nbytes)
    made: list[int] = []
    monkeypatch.setattr(
        "soul_deploy.export.event.storage_format.explicit_form", lambda *_: made.append(1)
    )
    with pytest.raises(LimitError, match=rf"needs {needed:,} bytes of memory; allowed are 1,000\."):
        build_event_network(small_model(), representation="explicit", max_memory=1000)
    assert not made


def test_auto_keeps_shared_rows_where_explicit_ones_do_not_fit() -> None:
    network = build_event_network(small_model(), max_memory=1 << 20)
    assert network.spiking_layers


def test_removal_beyond_the_limit_is_refused() -> None:
    model = with_generators(small_model())
    plan = plan_removal(model)
    needed = removal_bytes(model, plan)
    generated = sum(len(layer.generated) for layer in plan.layers)
    assert needed == sum(a.nbytes for a in model.state.values()) + 4 * 3 * generated
    remove(model, plan, max_memory=needed)
    with pytest.raises(LimitError, match=f"the removal needs {needed:,} bytes"):
        remove(model, plan, max_memory=needed - 1)


@pytest.mark.parametrize(
    "words",
    [("prune", "compact"), ("export", "event", "--no-check", "--representation", "explicit")],
)
def test_commands_take_the_limit(files: Files, tmp_path: Path, words: tuple[str, ...]) -> None:
    target = tmp_path / "made.safetensors"
    given = [*words, str(files.masked), "-o", str(target), "--max_memory"]
    result = CliRunner().invoke(root, [*given, "100"])
    assert "bytes of memory; allowed are 100" in result.output
    assert result.exit_code == 1
    assert not target.exists()
    result = CliRunner().invoke(root, [*given, "much"])
    assert "max_memory 'much' is no size" in result.output
    assert result.exit_code == 2
    assert CliRunner().invoke(root, [*given, "1GiB"]).exit_code == 0
    assert target.exists()


FAULTS = {
    "disk full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "read-only": OSError(errno.EROFS, os.strerror(errno.EROFS)),
    "no permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
}


def no_temporary_file(fault: OSError) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    return fail


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.fsync", "pathlib.Path.replace"])
def test_a_fault_at_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    path, fault = tmp_path / "result.txt", FAULTS[name]
    write_text(path, "old")
    monkeypatch.setattr(call, no_temporary_file(fault))
    with pytest.raises(FileWriteError, match=f"cannot be written: {fault.strerror}. Free some"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from soul_deploy.base.errors import FileWriteError
from soul_deploy.base.files import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write_tensors(Path(sys.argv[1]), {"a": np.zeros(100_000, np.float32)}, {"format": "x"})
except FileWriteError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path: Path) -> None:
    """The system refuses the write half way, as on a full disk."""
    path = tmp_path / "net.safetensors"
    write_tensors(path, {"a": np.ones(3, np.float32)}, {"format": "x"})
    before = path.read_bytes()
    place = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        env=place, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "net.safetensors cannot be written: " in done.stdout
    assert "what was there is unchanged" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_places_that_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, error, text in (
        (tmp_path / "file" / "net", PathKindError, "file is not a folder"),
        (tmp_path / "folder", PathKindError, "is a folder"),
        (tmp_path / ("n" * 300), FileWriteError, "cannot be written"),
    ):
        with pytest.raises(error, match=text):
            write_text(path, "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert (target.read_text(), link.read_text()) == ("old", "new")
    assert not link.is_symlink()


def test_links_are_read_unless_they_lead_nowhere(tmp_path: Path, files: Files) -> None:
    link, loop, lost = tmp_path / "link.safetensors", tmp_path / "loop", tmp_path / "lost"
    link.symlink_to(files.compact)
    loop.symlink_to(loop)
    lost.symlink_to(tmp_path / "nothing")
    assert load(link).graph == load(files.compact).graph
    for path in (loop, lost):
        with pytest.raises(MissingFileError, match="no file at"):
            load(path)
    with pytest.raises(MissingFileError, match="cannot be looked up"):
        require_file(tmp_path / ("n" * 300))


def test_other_errors_of_a_writer_are_not_hidden(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        write_atomically(tmp_path / "x", fail)
    assert os.listdir(tmp_path) == []
