"""Compiled kernels on disk: none of other sources, and none needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import soul_deploy
from soul_deploy.runtime.kernels import cache as kernelcache
from soul_deploy.runtime.kernels.cache import STAMP, forget_stale, sources_stamp

FIRES = """
import numpy as np
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.kernels.neurons import update_constants, update_of

neuron = NeuronEquation("integrate", 1.0, 1.0, 0.0, "gt")
v, spikes = np.zeros(1, np.float32), np.zeros((1, 1), np.uint8)
current = np.full((1, 1), 1.0, np.float32)
update_of(neuron)(current, *update_constants(neuron), False, v, spikes, 0, 1)
print(spikes[0, 0], sum(update_of(neuron).stats.cache_hits.values()))
"""


def ran(code: str, folder: Path, **changed: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | changed
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_inlined_equation_that_changed_is_compiled_again(tmp_path: Path) -> None:
    """numba looks at the file of the kernel alone, neurons.py, which stays as it is."""
    package = tmp_path / "soul_deploy"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("runtime", "base"):
        source = Path(soul_deploy.__file__).parent / name
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert ran(FIRES, tmp_path) == ["0", "0"]
    assert ran(FIRES, tmp_path) == ["0", "1"]  # kept
    equations = package / "runtime" / "equations.py"
    text = equations.read_text()
    assert text.count("v > threshold") == 1
    equations.write_text(text.replace("v > threshold", "v >= threshold"))
    assert ran(FIRES, tmp_path) == ["1", "0"]
    assert ran(FIRES, tmp_path) == ["1", "1"]
    assert ran(FIRES, tmp_path, NUMBA_BOUNDSCHECK="1") == ["1", "0"]


def test_without_a_folder_kernels_are_compiled_each_time(tmp_path: Path) -> None:
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from soul_deploy.runtime.kernels.cache import CACHE\n"
        "from soul_deploy.runtime.kernels.maps import scatter_spikes\n"
        "from soul_deploy.runtime.kernels.cache import compiling_message\n"
        "print(CACHE, scatter_spikes.stats.cache_path)\n"
        "print(compiling_message(scatter_spikes.stats.cache_path))\n"
    )
    said = ran(code, ROOT)
    assert said[:2] == ["False", "None"]
    assert " ".join(said).endswith("no folder is there to keep them in")


def test_a_stamp_follows_the_sources(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("A = 1\n")
    first = sources_stamp([tmp_path])
    assert sources_stamp([tmp_path]) == first
    (tmp_path / "a.py").write_text("A = 12\n")
    second = sources_stamp([tmp_path])
    os.utime(tmp_path / "a.py", ns=(1, 1))
    third = sources_stamp([tmp_path])
    (tmp_path / "b.py").touch()
    assert len({first, second, third, sources_stamp([tmp_path])}) == 4


def test_only_indexes_of_other_sources_go(tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    forget_stale(kept, "one")
    assert (kept / STAMP).read_text() == "one"
    (kept / "x.nbi").touch()
    (kept / "x.1.nbc").touch()
    forget_stale(kept, "one")
    assert (kept / "x.nbi").exists()
    forget_stale(kept, "two")
    assert sorted(path.name for path in kept.iterdir()) == sorted([STAMP, "x.1.nbc"])


def test_kernels_that_cannot_be_renewed_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*ignored: object, **options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(kernelcache, "_folder", lambda: tmp_path)
    assert kernelcache._usable()
    (tmp_path / STAMP).write_text("other")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert not kernelcache._usable()
    assert [path.name for path in tmp_path.iterdir()] == [STAMP]
    (tmp_path / "x.nbi").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert not kernelcache._usable()
    assert kernelcache._usable() and not (tmp_path / "x.nbi").exists()
