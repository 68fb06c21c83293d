"""A device without PyTorch: `runtime` works where torch and onnx cannot be imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import SHAPE, Files, make_files

from soul_deploy.model.file import load

FORBID = """
import sys
from importlib.abc import MetaPathFinder

class Forbid(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx"):
            raise ModuleNotFoundError(f"no {name} on this device", name=name)

sys.meta_path.insert(0, Forbid())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("device"))


def on_device(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that cannot import torch, torchvision or onnx."""
    return subprocess.run(
        [sys.executable, "-c", FORBID + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return on_device("from soul_deploy.cli.main import main\nmain()", *words)


def test_the_hook_forbids_torch() -> None:
    done = on_device("import torch")
    assert done.returncode == 1
    assert "no torch on this device" in done.stderr


def test_an_event_network_runs_and_gives_the_scores_of_pytorch(
    files: Files, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = """
import numpy as np
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.ops.counted_run import count
network = load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], network.run(x))
np.save(sys.argv[4], np.mean([network.step(x) for _ in range(network.time_steps)], axis=0))
assert sum(counts.synops for counts in count(network, x).values()) > 0
"""
    outputs = tmp_path / "run.npy", tmp_path / "steps.npy"
    done = on_device(code, files.compact_event, tmp_path / "x.npy", *outputs)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = load(files.compact).module()(torch.from_numpy(x)).numpy()
    for path in outputs:
        np.testing.assert_allclose(np.load(path), expected, atol=1e-5)


def test_importing_all_of_runtime_loads_no_torch() -> None:
    code = """
import pkgutil
from importlib import import_module
import soul_deploy.runtime
found = pkgutil.walk_packages(soul_deploy.runtime.__path__, "soul_deploy.runtime.")
names = [item.name for item in found]
assert len(names) > 40, names
for name in names:
    import_module(name)
heavy = {"torch", "torchvision", "onnx", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--help",), "Run an event network on images"),
        (("inspect", "--help"), "Model files, event networks and checkpoints"),
        (("run", "--help"), "without PyTorch"),
        (("bench", "sparse", "--help"), "Time engines side by side"),
    ],
)
def test_help_needs_no_torch(words: tuple[str, ...], text: str) -> None:
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_files_are_inspected(files: Files) -> None:
    for path, text in ((files.compact_event, "dense rows"), (files.masked, "batch norm")):
        done = command("inspect", path)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout


def test_files_of_pytorch_and_nir_are_inspected_without_it(files: Files, tmp_path: Path) -> None:
    state = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.ones(2)}
    torch.save({"net": state, "epoch": 3}, tmp_path / "theirs.pt")
    nir = pytest.importorskip("nir")
    nodes = {
        "in": nir.Input({"input": np.array([4])}),
        "out": nir.Output({"output": np.array([4])}),
    }
    nir.write(tmp_path / "theirs.nir", nir.NIRGraph(nodes, [("in", "out")]))
    for name, text in (("theirs.pt", "in 'net'"), ("theirs.nir", "2, 1 edges")):
        done = command("inspect", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
    done = command("run", tmp_path / "theirs.pt", tmp_path / "theirs.pt")
    assert done.returncode == 1
    assert "is a file of weights, and an event network is needed here" in done.stderr


def test_what_needs_more_says_so(files: Files) -> None:
    for words, missing in (
        (("inspect", files.compact_onnx), "onnx"),
        (("bench", "sparse", "--compact", files.compact), "torch"),
    ):
        done = command(*words)
        assert done.returncode == 2
        assert f"needs the package '{missing}', which is not installed here" in done.stderr
        assert "Traceback" not in done.stderr


def test_run_and_bench_work(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, *SHAPE), np.uint8))
    done = command("run", files.compact_event, path, "--counts")
    assert done.returncode == 0, done.stderr
    assert "SynOps" in done.stdout
    arguments = ("--event", files.compact_event, "--onnx_compact", files.compact_onnx)
    done = command("bench", "sparse", *arguments, "--iterations", 2, "--warmup", 0, "--no_fresh")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime-compact" in done.stdout and done.stderr == ""
