"""Where dense rows overtake compressed ones on this machine: one layer in both forms.

    python benchmarks/calibrate.py [--rate SHARE] [--time_step T] [--iterations N] [--json]

A 3×3 layer, 256→256 channels at 32×32, whose inputs fire at --rate, on one thread. DENSE_FROM in
export/event/storage_format.py is what this finds.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from soul_deploy.base import Array
from soul_deploy.base.tables import Table
from soul_deploy.runtime.bench.timing import TimingSchedule, time_in_turns
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import ConvSynapses, DenseRows, SparseRows, SpikingLayer
from soul_deploy.runtime.format.validate import MAX_STEPS
from soul_deploy.runtime.plan.layer_plan import aligned, plan_layer
from soul_deploy.runtime.plan.regions import Call, currents_shape, run_calls, spiking_regions

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
CHANNELS, SIDE = 256, 32


@dataclass(frozen=True)
class Crossing:
    """Medians in ms of both forms at one share of nonzero weights."""

    density: float
    sparse_ms: float
    dense_ms: float


def calibrate(
    rate: float, time_steps: int, schedule: TimingSchedule, seed: int
) -> tuple[Crossing, ...]:
    """Time a 3×3 layer, 256→256 channels at 32×32, whose inputs fire at `rate`; one thread."""
    rng = np.random.default_rng(seed)
    shape = (time_steps, SIDE * SIDE, CHANNELS)
    values = (rng.random(shape) < rate).astype(np.uint8)
    found = []
    for density in DENSITIES:
        weight = rng.normal(size=(CHANNELS, 3, 3, CHANNELS)).astype(np.float32) / 48
        weight[rng.random(weight.shape) >= density] = 0
        forms = {
            "sparse": _runner(_compressed(weight), values),
            "dense": _runner(DenseRows(weight), values),
        }
        times = time_in_turns(forms, [values], schedule)
        sparse, dense = (float(np.median(times[form])) for form in ("sparse", "dense"))
        found.append(Crossing(density, sparse, dense))
    return tuple(found)


def _compressed(weight: Array) -> SparseRows:
    flat = weight.reshape(-1, CHANNELS)
    row, target = np.nonzero(flat)
    starts = np.searchsorted(row, np.arange(len(flat) + 1)).astype(np.uint32)
    return SparseRows(starts, target.astype(np.uint32), flat[row, target])


def _runner(rows: SparseRows | DenseRows, values: Array) -> Callable[[Array], object]:
    calls = _calls(rows, values)
    return lambda _: run_calls(calls)


def _calls(rows: SparseRows | DenseRows, values: Array) -> tuple[Call, ...]:
    shape = (CHANNELS, SIDE, SIDE)
    geometry = ((3, 3), (1, 1), (1, 1), (1, 1), 1, (SIDE, SIDE))
    synapses = ConvSynapses(shape, shape, rows, None, *geometry)
    neuron = NeuronEquation("soul_lif_decay", 2.0, 1.0, 0.0, "gt")
    layer = SpikingLayer("layer", "layer.conv", "input", "spike", 1, synapses, neuron)
    ready, size = plan_layer(layer, "dense" if rows.dense else "sparse"), math.prod(shape)
    current = aligned(currents_shape(layer, ready, len(values)), np.float32)
    v, spikes = aligned((size,), np.float32), aligned(values.shape, np.uint8)
    ((calls,),) = spiking_regions(
        layer, ready, values, current, v, spikes, carry=False, partitions=1
    )
    return calls


def crossover(found: Sequence[Crossing]) -> float | None:
    """Density at which both take the same time, between two measured ones; None outside them."""
    for low, high in pairwise(found):
        before, after = low.sparse_ms - low.dense_ms, high.sparse_ms - high.dense_ms
        if before < 0 <= after:
            share = -before / (after - before)
            return low.density + share * (high.density - low.density)
    return None


def calibration_report(found: Sequence[Crossing]) -> str:
    """Both forms' times as a table, and where they cross."""
    rows = [[f"{c.density:.0%}", f"{c.sparse_ms:.2f}", f"{c.dense_ms:.2f}"] for c in found]
    at = crossover(found)
    said = "none in this range" if at is None else f"at {at:.0%} of the weights"
    table = Table(
        f"Rows of a {CHANNELS}→{CHANNELS} layer, 3×3, {SIDE}×{SIDE}",
        ["nonzero weights", "compressed ms", "dense ms"],
        rows,
    )
    return f"{table}\nDense rows overtake compressed ones: {said}."


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.08, help="firing rate per step")
    parser.add_argument("--time_step", "-T", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=15, help="runs of each form")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    if not 0 < given.rate <= 1:
        parser.error(f"--rate {given.rate:g}: give 0 < rate <= 1, the share that fires per step")
    if not 1 <= given.time_step <= MAX_STEPS:
        parser.error(f"--time_step {given.time_step}: give 1 to {MAX_STEPS}")
    if given.iterations < 1:
        parser.error(f"--iterations {given.iterations}: give at least 1")
    found = calibrate(given.rate, given.time_step, TimingSchedule(2, given.iterations), given.seed)
    document = {"schema": "soul-deploy/calibration/1", "rate": given.rate}
    document |= {"time_steps": given.time_step, "crossover": crossover(found)}
    document |= {"layers": [asdict(item) for item in found]}
    print(json.dumps(document, indent=1) if given.json else calibration_report(found))


if __name__ == "__main__":
    main()
