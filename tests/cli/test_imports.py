"""`run` loads what it uses, and ends with one line where the system gives it too little memory."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_cli_export import digits_model

from soul_deploy.base.memory import needed_bytes
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.runtime.kernels.cache import _withheld

SECONDS = 120  # on a busy machine, kernels compiled anew
REPORT = """
import json, sys
from soul_deploy.cli.main import root
root.main(json.loads(sys.argv[1]), standalone_mode=False)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
OTHERS_KERNEL = """
import sys
import numba
import numpy as np
from soul_deploy.runtime.engine.network import load
network = load(sys.argv[1])
network.run(np.load(sys.argv[2]))
assert "scipy.linalg" not in sys.modules
x = np.array([[2.0, 1.0], [0.0, 4.0]])
@numba.njit
def kernel(x):
    return x @ x, np.linalg.inv(x), np.convolve(x[0], x[1])
for found, expected in zip(kernel(x), kernel.py_func(x)):
    np.testing.assert_allclose(found, expected)
assert "scipy.linalg" in sys.modules
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An event file and two samples for it."""
    folder = tmp_path_factory.mktemp("imports")
    export_event(digits_model(), folder / "net.event.safetensors")
    np.save(folder / "x.npy", np.random.default_rng(0).random((2, 1, 8, 8), np.float32))
    return folder / "net.event.safetensors", folder / "x.npy"


def loaded_by(*words: object) -> set[str]:
    """The modules that a process has loaded when it has done what was typed."""
    typed = json.dumps([str(word) for word in words])
    done = subprocess.run(
        [sys.executable, "-c", REPORT, typed], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


HEAVY = {
    *("scipy.linalg", "scipy.sparse", "torch", "onnx", "onnxruntime", "PIL.Image"),
    *("soul_deploy.cli.bench", "soul_deploy.runtime.bench.scipy_engine", "multiprocessing"),
}


@pytest.mark.parametrize("more", [(), ("--stream",), ("--counts",), ("--threads", "1")])
def test_run_loads_only_what_it_uses(files: tuple[Path, Path], more: tuple[str, ...]) -> None:
    loaded = loaded_by("run", *files, *more, "--format", "json")
    assert {"numba", "soul_deploy.runtime.kernels.synapses"} <= loaded
    assert not loaded & {*HEAVY, "rich", "rich.console"}


def test_tables_load_rich_and_inspect_loads_nothing_heavy(files: tuple[Path, Path]) -> None:
    loaded = loaded_by("run", *files)
    assert "rich.console" in loaded
    assert not loaded & HEAVY
    assert not loaded_by("inspect", files[0]) & HEAVY
    assert not loaded_by("warm-up", files[0]) & HEAVY


@pytest.mark.parametrize("command", ["run", "inspect", "warm-up"])
def test_help_loads_no_numba(command: str) -> None:
    assert not loaded_by(command, "--help") & {"numba", "numpy", "rich"}


def test_kernels_of_others_still_have_their_blas(files: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHERS_KERNEL, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr


def test_another_thread_can_import_it_meanwhile() -> None:
    before: list[Any] = list(sys.meta_path)
    found: list[object] = []

    def look() -> None:
        finder: Any = sys.meta_path[0]
        found.append(finder.find_spec("scipy.linalg"))

    with _withheld():
        finder: Any = sys.meta_path[0]
        with pytest.raises(ImportError, match=r"scipy\.linalg is not loaded before it is used"):
            finder.find_spec("scipy.linalg")
        assert finder.find_spec("scipy.sparse") is None
        other = Thread(target=look)
        other.start()
        other.join()
    assert found == [None]
    assert sys.meta_path == before


# Too little memory.


def limited(kilobytes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """A command under `ulimit -v`; killed, and the test failed, if it does not end."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (kilobytes << 10, kilobytes << 10))

    program = "from soul_deploy.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=limit,
        env={k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"},
    )


@pytest.mark.parametrize("kilobytes", [100_000, 200_000, 300_000, 350_000, 400_000, 450_000])
def test_run_ends_with_one_line_where_memory_is_limited(
    files: tuple[Path, Path], kilobytes: int
) -> None:
    """400,000 is the limit under which an OpenBLAS that nobody used asked for memory for ever."""
    done = limited(kilobytes, "run", *files, "--threads", 2)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: this process may map {kilobytes:,} kB of memory (ulimit -v); ")
    assert f"kernels on 2 threads need at least {needed_bytes(2) >> 10:,} kB" in line
    assert line.endswith("or give --threads 1") is (kilobytes << 10 >= needed_bytes(1))


def test_run_works_with_little_more_than_what_is_asked_for(files: tuple[Path, Path]) -> None:
    for threads in (1, 2):
        kilobytes = (needed_bytes(threads) >> 10) + 100_000
        done = limited(kilobytes, "run", *files, "--threads", threads, "--format", "json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["results"]) == 2


def test_commands_whose_libraries_do_not_fit_say_so(files: tuple[Path, Path]) -> None:
    done = limited(300_000, "verify", files[0], files[0])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: the libraries of verify cannot be loaded (")
    assert "this process may map 300,000 kB of memory (ulimit -v)" in line


def _raising(error: BaseException) -> Callable[..., Any]:
    def fail(*given: object, **named: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("text", ["", "Unable to allocate 15.0 GiB for an array"])
def test_an_allocation_that_fails_is_one_line(
    files: tuple[Path, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soul_deploy.runtime.engine.network.load", _raising(MemoryError(text)))
    result = CliRunner().invoke(root, ["run", *map(str, files)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"Error: out of memory ({text or 'an allocation failed'})"
    )
