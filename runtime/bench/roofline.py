"""`bench sparse --roof`: how near a layer's synapses come to what the memory system allows.

One sample runs again and again on one thread, every kernel call timed. Every other run makes the
additions alone (roof.py) where a layer's synapses were. They leave the same currents, so whatever
stands around them does the same work and leaves the caches in the same state.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.bench.roof import Passes, roof_of
from soul_deploy.runtime.engine.inputs import samples_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.ops.counted_run import count
from soul_deploy.runtime.plan.buffers import Workspace, build_workspace
from soul_deploy.runtime.plan.layer_plan import Prepared, prepare_all
from soul_deploy.runtime.plan.partition import Call

SHARE_OF_SYNOPS = 0.8
"""The layers with the most SynOps are compared, until they hold this share of all."""

WARM_UP = 3


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
    prepared, samples = prepare_all(events), samples_of(events, x)
    workspace = workspace_for(events, prepared, samples[0])
    calls = [call for stage in workspace.stages for call in stage[0]]
    places = synapse_calls(calls, prepared)
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


def workspace_for(
    events: EventNetwork, prepared: Mapping[str, Prepared], sample: Array
) -> Workspace:
    """A workspace of one part that holds a sample, (T or 1, positions, channels)."""
    workspace = build_workspace(
        events, prepared, input_steps=len(sample), steps=events.time_steps, carry=False
    )
    workspace.values[events.input_name][...] = sample
    return workspace


def synapse_calls(calls: Sequence[Call], prepared: Mapping[str, Prepared]) -> dict[str, int]:
    """Which call is a layer's synapses, by the layer's name: the one that reads its rows."""
    return {
        name: next(i for i, call in enumerate(calls) if _reads(call, ready))
        for name, ready in prepared.items()
    }


def _reads(call: Call, ready: Prepared) -> bool:
    return any(given is array for given in call.arguments for array in ready.arrays)


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
