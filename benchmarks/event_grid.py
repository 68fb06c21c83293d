"""Time of the event runtime on 6Conv2FC over density, firing rate, threads and batch.

    python benchmarks/event_grid.py > grid.md

Prints Markdown: milliseconds a batch (medians), with ONNX Runtime on the dense network for scale;
then how time grows with T, and with SynOps (a line through the compressed networks).
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from soul_deploy.analysis.reference_network import ReferenceNetwork, reference_model
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.runtime.bench.engines import OnnxRuntimeEngine
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counted_run import count

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
RATES = (0.02, 0.08, 0.2)
SETTINGS = ((1, 1), (2, 1), (1, 32), (2, 32))  # (threads, batch)
STEPS = (1, 2, 3, 4, 8, 16, 20)
Images = npt.NDArray[np.float32]


def images(batch: int) -> Images:
    return np.random.default_rng(2025).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def median(run: Callable[[], object], runs: int) -> float:
    """Milliseconds; two runs before are not counted."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[2:]))


def times_of(infer: Callable[[int, Images], object]) -> Iterator[float]:
    """infer(threads, x) in every setting."""
    for threads, batch in SETTINGS:
        x = images(batch)
        yield median(lambda: infer(threads, x), 9 if batch == 1 else 1)  # noqa: B023


def event_times(wanted: ReferenceNetwork) -> tuple[list[float], float]:
    """Milliseconds by setting, and SynOps of one image."""
    events = build_event_network(reference_model(wanted))
    by_threads = {threads: Network(events, threads) for threads in (1, 2)}
    found = list(times_of(lambda threads, x: by_threads[threads].run(x)))
    counts = count(by_threads[1], images(1))
    return found, sum(item.synops for item in counts.values())


def dense_times() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_onnx(reference_model(ReferenceNetwork()), path)
        engines = {threads: OnnxRuntimeEngine(path, threads) for threads in (1, 2)}
        for engine in engines.values():
            engine.load()
        return list(times_of(lambda threads, x: engines[threads].infer(x)))


def row(*cells: object) -> None:
    shown = (f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, T = 4; ms a batch\n")
    row("weights", "rate", "SynOps", *(f"{t} thread, batch {b}" for t, b in SETTINGS))
    row(*["---"] * 3, *["---:"] * len(SETTINGS))
    row("ONNX Runtime", "any", "", *dense_times())
    points = []
    for density in DENSITIES:
        for rate in RATES:
            found, synops = event_times(ReferenceNetwork(density=density, rate=rate))
            row(f"{density:.1%}", f"{rate:.0%}", f"{synops / 1e6:,.1f} M", *found)
            if density < 0.12:
                points.append((synops / 1e6, found[0]))
    synops_of, times = np.array(points).T
    slope, start = np.polyfit(synops_of, times, 1)
    print("\nCompressed rows, one image, one thread:", end=" ")
    print(f"{start:.1f} ms + {slope:.2f} ms per million SynOps\n")
    row("T", "SynOps", "ms")
    row("---:", "---:", "---:")
    for steps in STEPS:
        found, synops = event_times(ReferenceNetwork(density=0.02, time_steps=steps))
        row(steps, f"{synops / 1e6:,.1f} M", found[0])


if __name__ == "__main__":
    main()
