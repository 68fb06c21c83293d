"""One engine in a fresh process: what importing, loading and the first run cost, and its memory.

`measure_fresh` starts this module as a program and reads the JSON that the program prints.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from soul_deploy.base import errors, terminal
from soul_deploy.runtime.bench import engines, timing


@dataclass(frozen=True)
class Fresh:
    """import_ms: its libraries; load_ms: its file; first_ms: the first batch; rss_mb: peak, MB."""

    import_ms: float
    load_ms: float
    first_ms: float
    rss_mb: float


def measure_fresh(spec: engines.EngineSpec, threads: int, batch: Path) -> Fresh:
    """Import, load and run `batch` (a .npy file) once in a process of its own.

    Raises SoulDeployError with the process's last line if it fails.
    """
    what = json.dumps([spec.name, spec.network, spec.target, str(spec.path), threads, str(batch)])
    done = subprocess.run(
        [sys.executable, "-m", "soul_deploy.runtime.bench.cold_start", what],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise errors.SoulDeployError(f"the engine {spec.name} failed in a fresh process: {reason}")
    return Fresh(**json.loads(done.stdout))


def probe(spec: engines.EngineSpec, threads: int, batch: Path) -> Fresh:
    """The measurement of `measure_fresh`, in this process."""
    x = np.load(batch, allow_pickle=False)
    import_ms = timing.milliseconds(lambda: import_libraries(spec, threads))
    engine = spec.create(threads)
    load_ms = timing.milliseconds(engine.load)
    first_ms = timing.milliseconds(lambda: engine.infer(x))
    return Fresh(import_ms, load_ms, first_ms, timing.peak_memory_mb())


def import_libraries(spec: engines.EngineSpec, threads: int) -> None:
    """Import the engine's own module and what it needs."""
    for name in spec.create(threads).imports:
        import_module(name)


def main() -> None:
    """Read what to run from the argument, print the result as JSON."""
    name, network, target, path, threads, batch = json.loads(sys.argv[1])
    spec = engines.EngineSpec(name, network, target, Path(path))
    terminal.show(json.dumps(asdict(probe(spec, threads, Path(batch)))))


if __name__ == "__main__":
    main()
