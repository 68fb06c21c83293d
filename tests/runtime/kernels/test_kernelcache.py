"""Compiled kernels on disk: found again by contents, none of other sources, and none needed."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba.core import config
from places import ROOT

import soul_deploy
from soul_deploy.runtime.kernels import kept
from soul_deploy.runtime.kernels.cache import compiling_message
from soul_deploy.runtime.kernels.kept import MOST_VERSIONS, PREFIX, Places, sources_stamp

FIRES = """
import numpy as np
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.kernels.neurons import update_kernel
from soul_deploy.runtime.kernels.steps import form_of, numbers_of

found = []
for neuron in (NeuronEquation("integrate", 1.0, 1.0, 0.0, "gt"),
               NeuronEquation("integrate", 1.0, 1.0, 0.0, "ge")):
    v, spikes = np.zeros(1, np.float32), np.zeros((1, 1), np.uint8)
    current = np.full((1, 1), 1.0, np.float32)
    update_kernel(form_of(neuron), 0)(current, numbers_of(neuron, 1), False, v, spikes, 0, 1)
    found += [spikes[0, 0], sum(update_kernel(form_of(neuron), 0).stats.cache_hits.values())]
print(*found)
"""
STAMP = "0123456789abcdef" * 4


def ran(code: str, folder: Path, **changed: str) -> list[str]:
    """The words on stdout; stderr stays empty."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | changed
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the packages that an event network needs."""
    package = tmp_path / "tree" / "soul_deploy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("runtime", "base"):
        source = Path(soul_deploy.__file__).parent / name
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    return package.parent


def test_an_inlined_equation_that_changed_is_compiled_again(tree: Path) -> None:
    """numba would look at the file of the kernel alone, neurons.py, which stays as it is."""
    assert ran(FIRES, tree) == ["0", "0", "1", "0"]
    assert ran(FIRES, tree) == ["0", "1", "1", "1"]  # kept, each equation's own
    equations = tree / "soul_deploy" / "runtime" / "equations.py"
    text = equations.read_text()
    assert text.count("return v > threshold") == 1
    equations.write_text(text.replace("v > threshold", "v >= threshold"))
    assert ran(FIRES, tree) == ["1", "0", "1", "0"]
    assert ran(FIRES, tree, NUMBA_BOUNDSCHECK="1") == ["1", "0", "1", "0"]
    assert ran(FIRES, tree) == ["1", "1", "1", "1"]
    equations.write_text(text)
    assert ran(FIRES, tree) == ["0", "1", "1", "1"]


LATE = """
from pathlib import Path
from soul_deploy.runtime import equations
from soul_deploy.runtime.kernels import neurons
path = Path(equations.__file__)
path.write_text(path.read_text().replace("v > threshold", "v >= threshold"))
"""


def test_a_process_keeps_no_kernels_under_sources_that_it_did_not_import(tree: Path) -> None:
    """An update while it runs: what it compiles afterwards is of the old equation."""
    assert ran(LATE + FIRES, tree) == ["0", "0", "1", "0"]
    assert ran(FIRES, tree) == ["1", "0", "1", "0"]


def test_neither_times_nor_the_place_of_the_sources_matter(tree: Path, tmp_path: Path) -> None:
    cache, other = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}, tmp_path / "other"
    assert ran(FIRES, tree, **cache) == ["0", "0", "1", "0"]
    shutil.copytree(tree, other)
    for path in other.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert ran(FIRES, other, **cache) == ["0", "1", "1", "1"]


def test_a_file_that_a_power_cut_left_empty_is_written_again(tree: Path, tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert ran(FIRES, tree, **cache) == ["0", "0", "1", "0"]
    for number, path in enumerate(sorted((tmp_path / "cache").rglob("*.nb[ic]"))):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if number % 2 else b"")
    assert ran(FIRES, tree, **cache) == ["0", "0", "1", "0"]
    assert ran(FIRES, tree, **cache) == ["0", "1", "1", "1"]


def test_without_a_folder_kernels_are_compiled_each_time_and_the_note_says_so() -> None:
    code = (
        "from soul_deploy.runtime.kernels import kept\n"
        "kept.can_be_written = lambda folder: False\n"
        "from soul_deploy.runtime.kernels.maps import mask_out\n"
        "from soul_deploy.runtime.kernels.cache import compiling_announced\n"
        "import numpy as np\n"
        "with compiling_announced(print):\n"
        "    mask_out(np.zeros((1, 1), np.int8), np.zeros(1, np.int8), 0, 1)\n"
        "print(mask_out.stats.cache_path)\n"
    )
    said = " ".join(ran(code, ROOT))
    assert "at every start" in said and "once" not in said
    assert "Set NUMBA_CACHE_DIR to one that can" in said and "soul-deploy warm-up NETWORK" in said
    assert said.endswith("None")


def test_a_stamp_follows_what_the_sources_say(tmp_path: Path) -> None:
    assert sources_stamp(tmp_path) is None
    (tmp_path / "a.py").write_text("A = 1\n")
    first = sources_stamp(tmp_path)
    os.utime(tmp_path / "a.py", ns=(1, 1))
    assert sources_stamp(tmp_path) == first
    (tmp_path / "a.py").write_text("A = 2\n")
    second = sources_stamp(tmp_path)
    (tmp_path / "b.py").touch()
    third = sources_stamp(tmp_path)
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert len({first, second, third, sources_stamp(tmp_path)}) == 4


@pytest.mark.parametrize(
    ("holder", "name"),
    [("numba", "__version__"), ("llvmlite", "__version__"), ("config", "BOUNDSCHECK")],
)
def test_a_stamp_follows_the_versions(
    holder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").touch()
    first = sources_stamp(tmp_path)
    monkeypatch.setattr(getattr(kept, holder), name, "1")
    assert sources_stamp(tmp_path) != first


def test_kernels_are_read_from_all_places_up_to_the_one_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("image", "home", "more")]
    monkeypatch.setattr(kept, "can_be_written", lambda folder: folder.name != "image")
    found = Places(iter(folders), STAMP)
    names = [folder / f"{PREFIX}0123456789abcdef" for folder in folders]
    assert (found.read, found.written) == (names[:2], names[1])
    nothing = Places(iter(folders), None)  # no sources, nothing to tell stale kernels by
    assert (nothing.read, nothing.written) == ([], None)


def test_old_versions_go_when_a_new_one_comes(tmp_path: Path) -> None:
    for age in range(6):
        old = tmp_path / f"{PREFIX}{age}"
        old.mkdir()
        os.utime(old, (1e9 - age, 1e9 - age))
    (tmp_path / "z").mkdir()
    found = Places(iter([tmp_path]), STAMP)
    saved: list[Path] = []
    found.write(saved.append)
    found.write(saved.append)
    assert saved == [found.written] * 2
    left = sorted(path.name for path in tmp_path.iterdir())
    mine = [PREFIX + name for name in ("0", "0123456789abcdef", "1", "2")]
    assert left == [*mine, "z"] and len(mine) == MOST_VERSIONS


def test_a_full_disk_ends_the_keeping_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    found = Places(iter([tmp_path]), STAMP)
    with caplog.at_level(logging.WARNING, "soul_deploy"):
        found.write(refuse)
        found.write(refuse)
    (message,) = caplog.messages
    assert f"cannot be kept in {tmp_path}" in message and "No space left on device" in message
    assert "NUMBA_CACHE_DIR" in message and found.written is None


def test_a_folder_that_lies_below_a_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert kept.can_be_written(tmp_path / "new" / "folder")
    assert not kept.can_be_written(tmp_path / "file" / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_note_says_why_kernels_that_are_there_do_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "can_be_written", lambda folder: False)
    found = Places(iter([tmp_path]), STAMP)
    assert "those in" not in compiling_message(found)
    (tmp_path / f"{PREFIX}other").mkdir()
    assert f"those in {tmp_path} are of other sources or versions" in compiling_message(found)
    found.read[0].mkdir()
    said = compiling_message(found)
    assert f"those in {found.read[0]} are for another network or processor" in said


def test_a_user_without_a_home_gets_no_folder_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", "")
    usual = list(kept.candidates())
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert list(kept.candidates()) == usual[:1] and len(usual) == 2


def test_what_holds_addresses_of_this_process_is_not_kept(tmp_path: Path) -> None:
    class Library:
        has_dynamic_globals = True

    class Result:
        library, lifted = Library(), ()

    cache: Any = kept.KernelCache(ran)
    cache.save_overload((), Result())  # would fail: it has no codegen


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As /proc does: access says that folders can be made below `name`, and making one fails."""
    make = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if name in path.parts:
            raise FileNotFoundError(2, "No such file or directory")
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


def test_a_folder_that_cannot_be_made_is_passed_over_before_anything_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(monkeypatch, "proc")
    folders = [tmp_path / name for name in ("proc", "home", "more")]
    found = Places(iter(folders), STAMP)
    assert list(tmp_path.iterdir()) == []  # who only reads writes nothing
    names = [folder / f"{PREFIX}0123456789abcdef" for folder in folders]
    assert list(found.sought()) == names[:2] == found.read
    assert found.written == names[1] and names[1].is_dir()
    where = f"they are kept in {names[1]}, since {folders[0]} cannot be written"
    assert compiling_message(found).endswith(where)
    alone = Places(iter(folders[:1]), STAMP)
    assert list(alone.sought()) == names[:1] and alone.written is None
    said = compiling_message(alone)
    assert "at every start" in said and str(folders[0]) in said and "kept in" not in said
    alone.write(lambda folder: pytest.fail("nothing can be written"))
    assert caplog.messages == []


def test_a_kernel_that_is_found_makes_no_folder_behind_it(tmp_path: Path) -> None:
    found = Places(iter([tmp_path / "cache"]), STAMP)
    assert next(found.sought()) == found.written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_one_true_line_where_nothing_can_be_made(tree: Path) -> None:
    """The kernels go beside the sources, which is what the line says."""
    announced = "from soul_deploy.runtime.kernels.cache import compiling_announced"
    code = f"{announced}\nwith compiling_announced(print):\n    exec({FIRES!r})\n"
    said = " ".join(ran(code, tree, NUMBA_CACHE_DIR="/proc/nowhere"))
    kernels = tree / "soul_deploy" / "runtime" / "kernels" / "__pycache__"
    assert said.count("kept") == 1 and f"they are kept in {kernels}" in said
    assert said.count("/proc/nowhere cannot be written") == 1
    assert ran(FIRES, tree, NUMBA_CACHE_DIR="/proc/nowhere") == ["0", "1", "1", "1"]
