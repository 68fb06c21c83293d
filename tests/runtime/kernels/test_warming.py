"""Cold starts: that kernels are compiled is said once, on stderr; `warm_up` compiles them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deployed import STEPS, Files, make_files, small_model
from numba.core import event as numba_event
from places import ROOT

from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.ir import Projection
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.kernels.cache import compiling_announced, compiling_message

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


def compile_event(module: str, folder: str | None) -> Any:
    def kernel() -> None: ...

    kernel.__module__ = module
    stats = SimpleNamespace(cache_path=folder)
    data: dict[str, Any] = {"dispatcher": SimpleNamespace(py_func=kernel, stats=stats)}
    return EVENTS.Event("numba:compile", EVENTS.EventStatus.START, data)


def test_only_kernels_of_this_package_are_announced_and_only_inside() -> None:
    said: list[str] = []
    ours = compile_event("soul_deploy.runtime.kernels.synapses", "/kept/here")
    with compiling_announced(said.append):
        EVENTS.broadcast(compile_event("elsewhere.soul_deploy", None))
        assert said == []
        EVENTS.broadcast(ours)
        EVENTS.broadcast(ours)
    EVENTS.broadcast(ours)
    assert said == [compiling_message("/kept/here")]


def test_a_kernel_that_is_kept_nowhere_is_said_to_be() -> None:
    said: list[str] = []
    with compiling_announced(said.append):
        EVENTS.broadcast(compile_event("soul_deploy.runtime.kernels.synapses", None))
    assert said[0].endswith("no folder is there to keep them in")
