"""How near an event network's largest layers come to what the memory system allows: their roof.

    python benchmarks/roof.py [EVENT_FILE] [--input NAME] [--density SHARE] [--rate SHARE] [--json]

Without a file: 6Conv2FC with random weights, as `bench sparse --reference`. One sample runs again
and again on one thread, every kernel call timed. Every other run makes the additions of a layer's
synapses alone where the layer's kernel was: the passes over rows that the kernel makes are listed
beforehand, and the kernel's innermost loop follows the list. That loop looks for no events,
computes no addresses, and no pass is over an empty row. Both leave the same currents, so whatever
stands around them does the same work and leaves the caches in the same state.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from soul_deploy.base import Array, brief
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.base.tables import Table
from soul_deploy.runtime.bench import inputs
from soul_deploy.runtime.bench.inputs import ReferenceRequest
from soul_deploy.runtime.bench.report import ms
from soul_deploy.runtime.engine.inputs import samples_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.io.inputs import RANDOM
from soul_deploy.runtime.kernels.cache import FASTMATH
from soul_deploy.runtime.kernels.simd import add_row
from soul_deploy.runtime.kernels.synapses import Taps
from soul_deploy.runtime.kernels.time_vectorised import (
    MOST_LANES,
    PREFETCH_ROWS,
    Kernel,
    convolve_lanes,
    multiply_lanes,
    prefetch_row,
)
from soul_deploy.runtime.ops.counted_run import count
from soul_deploy.runtime.plan.buffers import Buffers, build_buffers
from soul_deploy.runtime.plan.forms import event_forms
from soul_deploy.runtime.plan.layer_plan import LayerPlan, plan_layers
from soul_deploy.runtime.plan.regions import Call

SHARE_OF_SYNOPS = 0.8
"""The layers with the most SynOps are compared, until they hold this share of all."""

WARM_UP = 3


@brief
@dataclass(frozen=True)
class Passes:
    """Passes over rows that are not empty, in the order in which a kernel makes them.

    begins, ends  uint32 (passes,): synapses of the row
    bases         int64 (passes,): what their targets count from
    events        uint32 (passes,): which event
    amounts       float32 (events, lanes): values of the events at each step, 0 beyond the last
    """

    begins: Array
    ends: Array
    bases: Array
    events: Array
    amounts: Array

    @property
    def synapses(self) -> int:
        """Synapses passed over."""
        return int((self.ends.astype(np.int64) - self.begins).sum())


def roof_of(call: Call) -> tuple[Call, Passes] | None:
    """A call that makes the same additions as a kernel's call, for the values it would read now.

    None for kernels without lanes (dense rows, analog inputs, a single step, many steps).
    """
    out = call.arguments[-1]
    lanes = out.shape[1]
    if lanes > MOST_LANES:
        return None
    if call.kernel is convolve_lanes(lanes):
        passes, ahead, (targets, weight) = _of_convolution(call.arguments), 0, call.arguments[2:4]
    elif call.kernel is multiply_lanes(lanes):
        passes, ahead = _of_matrix(call.arguments), PREFETCH_ROWS
        targets, weight = call.arguments[4:6]
    else:
        return None
    listed = (passes.begins, passes.ends, passes.bases, passes.events)
    arguments = (*listed, ahead, targets, weight, passes.amounts, out)
    return Call(repeat_lanes(lanes), arguments), passes


def _of_matrix(arguments: tuple[Any, ...]) -> Passes:
    values, starts, ends, bases = arguments[:4]
    fired = np.flatnonzero(values[:, 0].any(axis=0))
    events = np.arange(len(fired), dtype=np.uint32)
    amounts = _in_lanes(values[:, 0, fired], arguments[-1].shape[1])
    return _filled(starts[fired], ends[fired], bases[fired], events, amounts)


def _of_convolution(arguments: tuple[Any, ...]) -> Passes:
    values, starts, (height, width) = arguments[0], arguments[1], arguments[4]
    position, channel = np.nonzero(values.any(axis=0))
    pieces = _pieces(*arguments[4:10], columns=len(arguments[9][0]) - 1)
    begins, ends, bases, events = [], [], [], []
    for at, (offset, length, base) in pieces:
        first, last = np.searchsorted(position, (at, at + 1))
        rows = channel[first:last] * (height * width) + offset
        begins.append(starts[rows])
        ends.append(starts[rows + length])
        bases.append(np.full(len(rows), base, np.int64))
        events.append(np.arange(first, last, dtype=np.uint32))
    amounts = _in_lanes(values[:, position, channel], arguments[-1].shape[1])
    return _filled(
        np.concatenate([starts[:0], *begins]),
        np.concatenate([starts[:0], *ends]),
        np.concatenate([np.zeros(0, np.int64), *bases]),
        np.concatenate([np.zeros(0, np.uint32), *events]),
        amounts,
    )


def _pieces(
    kernel: tuple[int, int],
    out_width: int,
    out_channels: int,
    pitch: tuple[int, int],
    y_runs: Taps,
    x_runs: Taps,
    *,
    columns: int,
) -> list[tuple[int, tuple[int, int, int]]]:
    """(position, (kernel offset, kernel positions, base)) of what an event there passes over.

    Kernel rows that are whole lie behind one another and are one pass, as in `convolve_lanes`.
    """
    (y_first, y_tap, y_out, y_length), (x_first, x_tap, x_out, x_length) = y_runs, x_runs
    found = []
    for at in range((len(y_first) - 1) * columns):
        y, x = divmod(at, columns)
        for a in range(y_first[y], y_first[y + 1]):
            for b in range(x_first[x], x_first[x + 1]):
                base = (y_out[a] * out_width + x_out[b]) * out_channels
                base -= y_tap[a] * pitch[0] + x_tap[b] * pitch[1]
                offset = y_tap[a] * kernel[1] + x_tap[b]
                if x_length[b] == kernel[1]:
                    found.append((at, (offset, y_length[a] * kernel[1], base)))
                else:
                    steps = range(y_length[a])
                    found += [(at, (offset + i * kernel[1], x_length[b], base)) for i in steps]
    return found


def _in_lanes(values: Array, lanes: int) -> Array:
    """float32 (events, lanes) from (T, events)."""
    amounts = np.zeros((values.shape[1], lanes), np.float32)
    amounts[:, : len(values)] = values.T
    return amounts


def _filled(begins: Array, ends: Array, bases: Array, events: Array, amounts: Array) -> Passes:
    """Without passes over empty rows."""
    filled = ends > begins
    return Passes(begins[filled], ends[filled], bases[filled], events[filled], amounts)


@cache
def repeat_lanes(lanes: int) -> Kernel:
    """repeat(begins, ends, bases, events, ahead, targets, weight, amounts, out): listed passes.

    ahead: a row's cache lines are asked for so many passes before it; 0: they are not.
    """

    @njit(nogil=True, fastmath=FASTMATH)
    def repeat(
        begins: Array,
        ends: Array,
        bases: Array,
        events: Array,
        ahead: int,
        targets: Array,
        weight: Array,
        amounts: Array,
        out: Array,
    ) -> None:
        count = np.uint64(len(begins))
        for i in range(count):
            if ahead > 0 and i + np.uint64(ahead) < count:
                j = np.uint64(i + np.uint64(ahead))
                prefetch_row(targets, weight, begins[j], ends[j])
            add_row(out, bases[i], targets, weight, begins[i], ends[i], amounts, events[i], lanes)

    return repeat


@brief
@dataclass(frozen=True)
class Roofed:
    """A layer's synapse call among all calls of a run, and its roof, if its kernel has one."""

    place: int
    roof: tuple[Call, Passes] | None


def measure_roof(path: Path, x: Array, runs: int) -> dict[str, Any]:
    """JSON data: "roof", one entry per layer; "not_synapse_share" of the time of a run.

    path: an event file. x: a batch of one, as `Network.run` takes it. runs: of each kind; medians.
    Raises MissingFileError, FileFormatError, LimitError, ValidityError.
    """
    events = load_event_network(path)
    plans, samples = plan_layers(events, event_forms(events)), samples_of(events, x)
    buffers = buffers_for(events, plans, samples[0])
    calls = [call for region in buffers.regions for call in region[0]]
    places = synapse_calls(calls, plans)
    counts = count(Network(events, 1), x)
    synops = {layer.name: counts[layer.projection].synops for layer in events.projected}
    run_timed(calls)  # the spikes that roofs are listed for
    chosen = {name: Roofed(places[name], roof_of(calls[places[name]])) for name in largest(synops)}
    times, bare = time_both(calls, chosen.values(), runs)
    share = times[list(places.values())].sum() / times.sum()
    entries = [
        entry(name, synops[name], item, float(times[item.place]), float(bare[item.place]))
        for name, item in chosen.items()
    ]
    return {"roof": entries, "not_synapse_share": float(1 - share)}


def buffers_for(events: EventNetwork, plans: Mapping[str, LayerPlan], sample: Array) -> Buffers:
    """A workspace of one part that holds a sample, (T or 1, positions, channels)."""
    buffers = build_buffers(
        events, plans, input_steps=len(sample), steps=events.time_steps, carry=False
    )
    buffers.values[events.input_name][...] = sample
    return buffers


def synapse_calls(calls: Sequence[Call], plans: Mapping[str, LayerPlan]) -> dict[str, int]:
    """Which call is a layer's synapses, by the layer's name: the one that reads its rows."""
    return {
        name: next(i for i, call in enumerate(calls) if _reads(call, plan))
        for name, plan in plans.items()
    }


def _reads(call: Call, plan: LayerPlan) -> bool:
    return any(given is array for given in call.arguments for array in plan.arrays)


def largest(synops: Mapping[str, int]) -> list[str]:
    """Layers with the most SynOps, in order of execution, that hold SHARE_OF_SYNOPS of all."""
    chosen: set[str] = set()
    held, total = 0, sum(synops.values())
    for name in sorted(synops, key=lambda name: -synops[name]):
        if held < SHARE_OF_SYNOPS * total:
            chosen.add(name)
            held += synops[name]
    return [name for name in synops if name in chosen]


def time_both(calls: Sequence[Call], chosen: Iterable[Roofed], runs: int) -> tuple[Array, Array]:
    """Median milliseconds of every call: as they are, and with roofs in their place."""
    bare = list(calls)
    for item in chosen:
        if item.roof is not None:
            bare[item.place] = item.roof[0]
    for _ in range(WARM_UP):
        run_timed(calls)
        run_timed(bare)
    found = [(run_timed(calls), run_timed(bare)) for _ in range(runs)]
    times, bare_times = np.median(np.array(found), axis=0)
    return times, bare_times


def run_timed(calls: Sequence[Call]) -> list[float]:
    """Execute in order; milliseconds of each."""
    times = []
    for call in calls:
        start = time.perf_counter_ns()
        call.kernel(*call.arguments)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def entry(
    name: str, synops: int, item: Roofed, synapse_ms: float, roof_ms: float
) -> dict[str, Any]:
    """One layer as JSON data; without a roof, what depends on it is None."""
    passes = None if item.roof is None else item.roof[1]
    return {
        "layer": name,
        "synops": synops,
        "passes": None if passes is None else len(passes.begins),
        "synapse_ms": synapse_ms,
        "roof_ms": None if passes is None else roof_ms,
        "share_of_roof": None if passes is None else roof_ms / synapse_ms,
    }


def report(found: Mapping[str, Any]) -> str:
    """What `measure_roof` found as a table, and the share of the time outside the synapses."""
    rows: list[list[object]] = []
    for item in found["roof"]:
        known = item["roof_ms"] is not None
        roofed = [ms(item["roof_ms"]), f"{item['share_of_roof']:.0%}"] if known else ["-", "-"]
        passes = item["passes"] if known else "-"
        rows.append([item["layer"], item["synops"], passes, ms(item["synapse_ms"]), *roofed])
    columns = ["layer", "SynOps", "passes", "synapse ms", "roof ms", "share of the roof"]
    share = f"{found['not_synapse_share']:.0%}".replace("%", " %")
    text = Table("Roof of the event engine", columns, rows)
    return f"{text}\n{share} of the time is not synapse work. A roof is the same additions alone."


def files_of(given: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The event file to measure and its input: as given, or of the reference network."""
    if given.event is not None:
        return given.event, given.input
    wanted = ReferenceRequest(given.density, None, given.rate, given.time_step, given.seed)
    model, images = wanted.write(folder, 1)
    (engine,) = inputs.prepare_engines(("event",), inputs.BenchFiles(model=model), folder)
    return engine.path, str(images)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("event", nargs="?", type=Path, help="event file")
    parser.add_argument("--input", default=RANDOM, help="random, a data set, or a .npy file")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--density", type=float, help="nonzero weights of the reference network")
    parser.add_argument("--rate", type=float, help="firing rate of the reference network")
    parser.add_argument("--time_step", "-T", type=int, help="time steps of the reference network")
    parser.add_argument("--iterations", type=int, default=50, help="runs of each kind")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, source = files_of(given, Path(folder))
            rule = inputs.common_rule([inputs.facts_of(path)])
            samples, axis = inputs.input_samples(source, given.data_dir, rule, 1, given.seed)
            found = measure_roof(path, np.take(samples, [0], axis), given.iterations)
    except SoulDeployError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=1) if given.json else report(found))


if __name__ == "__main__":
    main()
