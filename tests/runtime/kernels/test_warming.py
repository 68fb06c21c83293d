"""Cold starts: that kernels are compiled is said once, on stderr; `warm_up` compiles them all."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from deployed import STEPS, Files, make_files, small_model
from numba.core import event as numba_event
from places import ROOT

from soul_deploy import warm_up
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.ir import Projection
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.io import warm_up as warming
from soul_deploy.runtime.kernels import kept
from soul_deploy.runtime.kernels.cache import compilations, compiling_announced
from soul_deploy.runtime.kernels.kept import places

SAID = "Compiling kernels once for this machine"
EVENTS: Any = numba_event  # untyped


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("warming"))


def process(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A fresh Python that keeps compiled kernels in `cache`."""
    env = {key: value for key, value in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    env |= {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)


def test_a_cold_start_is_said_once_on_stderr_and_a_warm_one_is_silent(
    files: Files, tmp_path: Path
) -> None:
    x, cache = tmp_path / "x.npy", tmp_path / "cache"
    np.save(x, np.random.default_rng(0).random((2, 3, 8, 10)).astype(np.float32))
    words = ("-m", "soul_deploy", "run", files.compact_event, x, "--threads", 1, "--format", "json")
    cold, warm = (process(cache, *words) for _ in range(2))
    assert cold.stderr.count(SAID) == 1
    assert len(cold.stderr.splitlines()) == 1
    assert f"they are kept in {cache}" in cold.stderr
    assert warm.stderr == ""
    assert json.loads(cold.stdout) == json.loads(warm.stdout)


LIBRARY = """
import sys
import numpy as np
from numba.core.event import install_recorder
from soul_deploy.runtime.engine.network import load
network = load(sys.argv[1], threads=int(sys.argv[2]))
network.warm_up(stream=True)
x = np.random.default_rng(0).random((3, *network.events.input_shape)).astype(np.float32)
with install_recorder("numba:compile") as recorder:
    network.run(x)
    network.run(x[:1])
    network.step(x[:1])
    network.step()
print(len(recorder.buffer))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_warm_up_nothing_is_compiled_and_the_library_is_silent(
    tmp_path: Path, threads: int
) -> None:
    """Compressed rows: a stream has other kernels than a run, which does all steps at once."""
    model = small_model()
    projection = next(node.name for node in model.graph.nodes if isinstance(node, Projection))
    export_event(model, tmp_path / "net", representation="explicit", rows={projection: "sparse"})
    found = process(tmp_path / "cache", "-c", LIBRARY, tmp_path / "net", threads)
    assert (found.stdout, found.stderr) == ("0\n", "")


def test_a_warm_up_changes_no_result_and_leaves_a_stream_alone() -> None:
    network, other = (Network(build_event_network(small_model()), threads=1) for _ in range(2))
    x = np.random.default_rng(1).random((STEPS, 2, 3, 8, 10)).astype(np.float32)
    for step in x:
        expected = network.step(step)
        other.warm_up(stream=True)
        np.testing.assert_array_equal(other.step(step), expected)
    np.testing.assert_array_equal(other.run(x[0]), network.run(x[0]))


def compile_event(module: str) -> Any:
    def kernel() -> None: ...

    kernel.__module__ = module
    data: dict[str, Any] = {"dispatcher": SimpleNamespace(py_func=kernel)}
    return EVENTS.Event("numba:compile", EVENTS.EventStatus.START, data)


def test_only_kernels_of_this_package_are_announced_and_only_inside() -> None:
    said: list[str] = []
    ours = compile_event("soul_deploy.runtime.kernels.synapses")
    with compiling_announced(said.append):
        EVENTS.broadcast(compile_event("elsewhere.soul_deploy"))
        assert said == []
        EVENTS.broadcast(ours)
        EVENTS.broadcast(ours)
    EVENTS.broadcast(ours)
    (line,) = said
    assert line.startswith(SAID)


def many(folder: Path) -> list[Path]:
    """Event networks that take all kinds of rows, with what a folder of them may hold."""
    model = small_model()
    projection = next(node.name for node in model.graph.nodes if isinstance(node, Projection))
    chosen: dict[str, dict[str, Any]] = {
        "shared": {},
        "dense": {"representation": "explicit", "rows": {projection: "dense"}},
        "sparse": {"representation": "explicit", "rows": {projection: "sparse"}},
    }
    for name, how in chosen.items():
        export_event(model, folder / name, **how)
    return [folder / name for name in chosen]


ANY_USE = """
import sys
import numpy as np
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.kernels.cache import compilations
from soul_deploy.runtime.ops.counted_run import count_run
draw = np.random.default_rng(0)
with compilations() as found:
    for path in sys.argv[1:]:
        for threads in (1, 2, 3):
            network = load(path, threads)
            shape, steps = network.events.input_shape, network.time_steps
            pixels = draw.integers(0, 256, (4, *shape)).astype(np.uint8)
            for x in (pixels, pixels[:1], draw.random((steps, 2, *shape)).astype(np.float32)):
                network.run(x)
                network.run_recorded(x)
                count_run(network, x)
            network.step(pixels)
            network.step()
            network.step(draw.random((4, *shape)).astype(np.float32))
print(len(found), *sorted({kernel.py_func.__qualname__ for kernel in found}))
"""


def test_after_the_command_no_use_of_the_networks_compiles(tmp_path: Path) -> None:
    networks, cache = many(tmp_path), tmp_path / "cache"
    words = ("-m", "soul_deploy", "warm-up", *networks, "--counts", "--format", "json")
    cold, warm = (json.loads(process(cache, *words).stdout) for _ in range(2))
    assert cold["schema"] == "soul-deploy/warm-up/1"
    assert [row["path"] for row in cold["networks"]] == [str(path) for path in networks]
    assert cold["networks"][0]["compiled"] > 5 and cold["seconds"] > 0
    assert [row["compiled"] for row in warm["networks"]] == [0, 0, 0]
    assert Path(cold["folder"]).parent == cache and any(Path(cold["folder"]).iterdir())
    assert process(cache, "-c", ANY_USE, *networks).stdout.split() == ["0"]


def test_a_warm_up_that_cannot_keep_its_kernels_fails_and_says_what_to_do(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "can_be_written", lambda folder: False)
    nowhere = kept.Places(iter([Path("/nowhere")]), "0" * 64)
    monkeypatch.setattr(warming, "places", lambda: nowhere)
    with compilations() as found:
        monkeypatch.setattr(warming, "compilations", lambda: nullcontext(found))
        EVENTS.broadcast(compile_event("soul_deploy.runtime.kernels.synapses"))
        result = CliRunner().invoke(root, ["warm-up", str(files.compact_event)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "kernels were compiled, and are lost: no folder can be written" in line
    assert "(/nowhere). Set NUMBA_CACHE_DIR to one that can" in line


def test_a_warm_up_that_finds_all_kernels_needs_no_folder(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up(files.compact_event)
    monkeypatch.setattr(places(), "written", None)
    done = warm_up(str(files.compact_event))
    assert (done.compiled, done.folder) == (0, None)
    assert done.to_dict()["folder"] is None
    assert "All kernels were found; no folder can be written." in done.text()


def test_a_warm_up_refuses_what_it_cannot_compile(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(root, ["warm-up", str(files.compact)])
    assert result.exit_code == 1 and "is a model file" in result.stderr
    monkeypatch.setattr(warming, "compiled", lambda: False)
    result = CliRunner().invoke(root, ["warm-up", str(files.compact_event)])
    assert result.exit_code == 2 and "NUMBA_DISABLE_JIT is set" in result.stderr
