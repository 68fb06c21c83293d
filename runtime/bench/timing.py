"""Timing engines: side by side, in blocks that alternate, and what one costs in a fresh process.

`measure_fresh` starts this module as a program and reads the JSON that the program prints.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from soul_deploy.base import Array, errors, terminal
from soul_deploy.runtime.bench.engines import EngineSpec

REST_SECONDS = 0.02
"""Pause before each block: worker threads of the engine before stop spinning meanwhile."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class TimingSchedule:
    """How often each engine runs.

    warmup      runs before anything is measured, per engine
    iterations  measured runs per engine (at least; with `seconds`, the least)
    seconds     measure for this long per engine instead, or None
    rounds      blocks per engine; engines take turns, so that a slow moment of the machine
                falls on all of them
    """

    warmup: int = 5
    iterations: int = 50
    seconds: float | None = None
    rounds: int = 5


def time_in_turns(
    runs: Mapping[str, Callable[[Array], object]],
    batches: Sequence[Array],
    schedule: TimingSchedule,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of every measured run, by engine.

    Each block starts with a pause and one run that is not measured (it brings the engine's
    weights back into the cache). The garbage collector is off inside a block. Engines see the
    same `batches` in the same order. `advance` is called after each block.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for count in range(schedule.warmup):
            run(batches[count % len(batches)])
    per_round = -(-schedule.iterations // schedule.rounds)
    for _ in range(schedule.rounds):
        for name, run in runs.items():
            least = min(per_round, schedule.iterations - len(times[name]))
            if least > 0:
                _time_block(run, batches, times[name], least, schedule)
            advance()
    return times


def _time_block(
    run: Callable[[Array], object],
    batches: Sequence[Array],
    times: list[float],
    least: int,
    schedule: TimingSchedule,
) -> None:
    time.sleep(REST_SECONDS)
    collecting = gc.isenabled()
    gc.disable()
    try:
        run(batches[len(times) % len(batches)])
        end = time.perf_counter() + (schedule.seconds or 0.0) / schedule.rounds
        done = 0
        while done < least or time.perf_counter() < end:
            times.append(milliseconds(lambda: run(batches[len(times) % len(batches)])))
            done += 1
    finally:
        if collecting:
            gc.enable()


def milliseconds(action: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1e6


def percentile(times: Sequence[float], share: float) -> float:
    """The `share`-th percentile, linear between neighbours."""
    return float(np.percentile(np.array(times), share))


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, in MB (10^6 bytes).

    Linux's VmHWM, because `ru_maxrss` also remembers the process that this one was forked from;
    `ru_maxrss` elsewhere; None where there is neither (Windows).
    """
    if STATUS.exists():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@dataclass(frozen=True)
class Fresh:
    """import_ms: its libraries; load_ms: its file; first_ms: the first batch; rss_mb: peak, MB."""

    import_ms: float
    load_ms: float
    first_ms: float
    rss_mb: float | None


def measure_fresh(spec: EngineSpec, threads: int, batch: Path) -> Fresh:
    """Import, load and run `batch` (a .npy file) once in a process of its own.

    Raises SoulDeployError with the process's last line if it fails.
    """
    told = asdict(spec) | {"path": str(spec.path), "forms": dict(spec.forms)}
    what = json.dumps([told, threads, str(batch)])
    done = subprocess.run(
        [sys.executable, "-m", "soul_deploy.runtime.bench.timing", what],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise errors.SoulDeployError(f"the engine {spec.name} failed in a fresh process: {reason}")
    return Fresh(**json.loads(done.stdout))


def main() -> None:
    """Read what to run from the argument, print its measurement as JSON."""
    told, threads, batch = json.loads(sys.argv[1])
    spec = EngineSpec(**{**told, "path": Path(told["path"])})
    x = np.load(batch, allow_pickle=False)
    import_ms = milliseconds(lambda: [import_module(n) for n in spec.create(threads).imports])
    engine = spec.create(threads)
    load_ms = milliseconds(engine.load)
    first_ms = milliseconds(lambda: engine.infer(x))
    terminal.show(json.dumps(asdict(Fresh(import_ms, load_ms, first_ms, peak_memory_mb()))))


if __name__ == "__main__":
    main()
