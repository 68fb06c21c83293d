"""Damaged files against every reader, in a process of its own; how is told in fuzzing.py."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import peak
import pytest
from fuzz_mutations import Rng, damaged_bytes, damaged_json, damaged_tensors
from fuzz_targets import Target
from places import PATH, ROOT, SUPPORT, TESTS

from soul_deploy.base.errors import FileFormatError
from soul_deploy.export.nir import package as nir_trial

BOUNDS = {"NUMBA_BOUNDSCHECK": "1"}


def seed_of(name: str, *, new: bool = False) -> int:
    """The seed in the environment; without it 0, or a `new` one, which only long runs draw."""
    return int(os.environ.get(name) or (secrets.randbelow(2**31) if new else 0))


def fuzz(tmp_path: Path, seed: int, cases: int, *more: str, **changed: str) -> dict[str, Any]:
    """The summary; an assertion with the command that runs a failed case again."""
    log = tmp_path / "running"
    command = [sys.executable, str(SUPPORT / "fuzzing.py"), "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": PATH} | changed
    print(f"fuzz seed {seed}: FUZZ_SEED={seed} runs the same cases")
    done = subprocess.run(
        [*command, "--cases", str(cases), "--log", str(log), *more],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout, (
        f"case {log.read_text()} of seed {seed} ended it: {done.returncode}\n"
        + (done.stderr[-2000:])
    )
    summary: dict[str, Any] = json.loads(done.stdout)
    for failure in summary["failures"][:5]:
        again = f"PYTHONPATH={PATH} {' '.join(command)} --first {failure['case']} --cases 1"
        print(f"{again}\n{failure['target']}: {failure['damage']}\n{failure['what']}")
    assert not summary["failures"], f"{len(summary['failures'])} cases; see above"
    assert sum(summary["outcomes"].values()) == cases
    return summary


def test_no_reader_is_fooled(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, seed_of("FUZZ_SEED"), 5000)["outcomes"]
    readers = [
        "event",
        "model",
        "weights",
        "onnx",
        "nir",
        "array",
        "archive",
        "aedat2",
        "aedat3",
        "atis",
        "events",
        "gesture",
        "frames",
        "image",
        "idx",
        "table",
        "baseline",
        "checkpoint",
        "inspect",
    ]
    for reader in readers:
        assert outcomes.get(f"{reader}: refused", 0) > 0, reader
    for reader in ("event", "model"):  # some damage leaves a valid network, which is then run
        assert outcomes[f"{reader}: loaded"] > 20, reader


def test_survivors_stay_inside_their_arrays(tmp_path: Path) -> None:
    """Kernels compiled with bounds checks, in a cache of their own."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **BOUNDS}
    cases = fuzz(tmp_path, seed_of("FUZZ_SEED"), 150, "--target", "event", **cache)
    assert cases["outcomes"]["event: loaded"] > 0


def test_a_case_follows_from_its_seed_and_number(tmp_path: Path) -> None:
    first = fuzz(tmp_path, 5, 40, "--target", "idx")
    again = fuzz(tmp_path, 5, 40, "--target", "idx")
    assert first["outcomes"] == again["outcomes"]


def test_damage_changes_something() -> None:
    rng = np.random.default_rng(0)
    data, tree = bytes(range(200)), {"a": [1, {"b": 2.5, "c": "x"}], "d": None}
    tensors = {"x": np.arange(6, dtype=np.float32), "y": np.ones((2, 3), np.bool_)}
    before = {name: array.copy() for name, array in tensors.items()}
    kinds = {damaged_bytes(data, rng)[0].split()[0] for _ in range(200)}
    assert len(kinds) >= 6
    assert sum(damaged_json(tree, rng)[1] != tree for _ in range(200)) > 150
    for _ in range(300):
        damaged_tensors(tensors, rng)
    assert all(np.array_equal(before[name], array) for name, array in tensors.items())


def taking(size: int) -> Target:
    """A reader that takes so much memory and gives it back."""

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        path.write_bytes(b"")
        return "nothing", False

    def read(path: Path) -> int:
        return len(b"x" * size)

    return Target("taking", "", damage, read, lambda found, signed: None)


@pytest.mark.skipif(not peak.RESETTABLE, reason="a peak stays until the process ends")
def test_memory_is_measured_case_by_case(tmp_path: Path) -> None:
    """Not only beyond the highest peak that there was before."""
    held = b"x" * (600 << 20)
    del held
    for _ in range(2):
        outcome, wrong = fuzzing.run_case([taking(400 << 20)], 0, 0, tmp_path)
        assert outcome == "taking: loaded"
        assert wrong is not None and "peak memory grew by 4" in wrong
    assert fuzzing.run_case([taking(100 << 20)], 0, 0, tmp_path)[1] is None


@pytest.mark.skipif(not peak.RESETTABLE, reason="a peak stays until the process ends")
def test_memory_of_the_process_that_reads_nir_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(nir_trial, "PROGRAM", (str(SUPPORT / "nir_child.py"),))
    monkeypatch.setenv(peak.CHILD, str(tmp_path / "child"))
    for count, least in ((100 << 20, 400 << 20), (1, 0)):
        with h5py.File(tmp_path / "x.nir", "w") as opened:
            chunks = (min(count, 1 << 20),)
            opened.create_dataset("node/x", (count,), "f4", chunks=chunks)
        with pytest.raises(FileFormatError, match="KeyError: 'type'"):
            nir_trial.try_reading(tmp_path / "x.nir")
        assert least <= peak.of_child() < least + (100 << 20)
    assert peak.of_child() == 0


@pytest.mark.soak
def test_many_damaged_files(tmp_path: Path) -> None:
    cases, seed = int(os.environ.get("SOAK_CASES", "100000")), seed_of("FUZZ_SEED", new=True)
    print(json.dumps(fuzz(tmp_path, seed, cases)))


@pytest.mark.soak
def test_many_survivors_inside_their_arrays(tmp_path: Path) -> None:
    cases = int(os.environ.get("SOAK_BOUND_CASES", "20000"))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **BOUNDS}
    for target in ("event", "model"):
        found = fuzz(tmp_path, seed_of("FUZZ_SEED", new=True), cases, "--target", target, **cache)
        print(json.dumps(found))


@pytest.mark.soak
def test_kernel_tests_with_bounds_checks(tmp_path: Path) -> None:
    files = ["test_kernels.py", "test_merging.py", "test_event.py", "test_live_neurons.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(next(TESTS.rglob(name))) for name in files)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | BOUNDS,
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
