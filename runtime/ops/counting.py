"""Operation counts of the event network, from the very rows that it executes.

Counting is a separate pass over recorded events, so that running costs nothing extra. SynOps count
nonzero weights onto live neurons only. The kernels execute more additions: zeros of dense rows, and
weights of shared rows onto dead neurons. `count_additions` counts all additions that are executed.
Definitions: docs/counting.md.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from soul_deploy.base import Array, dispatch
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.format import network
from soul_deploy.runtime.ops import counters, fan_out
from soul_deploy.runtime.plan.neuron_state import sent_dtype

Held: TypeAlias = Callable[[str], Array]


def projection_steps(layer: network.Synaptic, values: Array) -> counters.StepCounts:
    """Counts of a projection for the events of its source. values (B, T or 1, positions, channels).

    Raises VerificationError for values that the edge cannot hold.
    """
    low = -(layer.bound or 0) if layer.edge == "signed" else 0
    counters.require_edge_values(layer.name, values, edge_bound(layer), low)
    values = np.abs(values) if low else values
    synapses = layer.synapses
    starts, targets = fan_out.nonzero_rows(synapses)
    touched = np.zeros(math.prod(layer.current_shape), np.uint8)
    live = np.ones(len(touched), np.bool_) if layer.updated is None else layer.updated
    walk = fan_out.walk_of(synapses)
    batch, steps = values.shape[:2]
    walked = np.zeros((steps, batch, 3), np.int64)  # synapses, synapses times value, touched
    for b, t in np.ndindex(batch, steps):
        touched[:] = 0
        walk(np.ascontiguousarray(values[b, t]), starts, targets, live, touched, walked[t, b, :2])
        walked[t, b, 2] = np.count_nonzero(touched)
    biased = np.full((steps, batch), biased_targets(layer), np.int64)
    if layer.edge == "analog":
        return counters.StepCounts({"macs_effective": walked[..., 0], "bias_adds": biased})
    by_step = values.swapaxes(0, 1).reshape(steps, batch, -1)
    return counters.StepCounts(
        {
            "events_in": np.count_nonzero(by_step, axis=2).astype(np.int64),
            "spikes_in": by_step.sum(axis=2, dtype=np.int64),
            "synops_events": walked[..., 0],
            "synops": walked[..., 1],
            "touched": walked[..., 2],
            "bias_adds": biased,
        }
    )


def edge_bound(layer: network.Synaptic) -> int | None:
    """The largest value that can arrive; None: an analog edge."""
    return None if layer.edge == "analog" else layer.bound or 1


def biased_targets(layer: network.Synaptic) -> int:
    """Live targets whose bias is not 0."""
    bias = layer.synapses.bias
    if bias is None:
        return 0
    size = math.prod(layer.current_shape)
    biased = np.broadcast_to(bias != 0, (size // len(bias), len(bias))).reshape(-1)
    return int(np.count_nonzero(biased if layer.updated is None else biased & layer.updated))


def limits_of(layer: network.Synaptic, slots: int) -> counters.CountLimits:
    """What its structure allows in `slots` = executed steps × samples."""
    synapses, size = layer.synapses, math.prod(layer.current_shape)
    live = size if layer.updated is None else int(layer.updated.sum())
    stored = int(fan_out.fanout_map(synapses, layer.updated).sum())
    return counters.CountLimits(slots, edge_bound(layer), stored, live, synapses.most_targets)


def neuron_steps(layer: network.Firing, spikes_out: Array) -> counters.StepCounts:
    """Updates and spikes, of integers their sizes.

    spikes_out (T, B, ...), constant-pattern channels behind the others.
    """
    steps, batch = spikes_out.shape[:2]
    of_neurons = spikes_out[:, :, : layer.current_shape[0]]  # no others are updated
    sizes = of_neurons if of_neurons.dtype == np.bool_ else np.abs(of_neurons)
    fired = sizes.reshape(steps, batch, -1).sum(axis=2, dtype=np.int64)
    updates = np.full((steps, batch), layer.neurons, np.int64)
    return counters.StepCounts({"neuron_updates": updates, "spikes_out": fired})


def pooling_steps(layer: network.PoolLayer, values: Array) -> counters.StepCounts:
    """Nonzero inputs × the windows that hold them; values (B, T or 1, positions, channels)."""
    rows, columns = (_windows(layer, axis) for axis in (0, 1))
    windows = np.outer(rows, columns).reshape(1, 1, -1)
    windowed: Array = (np.count_nonzero(values, axis=3) * windows).sum(axis=2, dtype=np.int64)
    return counters.StepCounts({"pool_ops": np.ascontiguousarray(windowed.T)})


def _windows(layer: network.PoolLayer, axis: int) -> Array:
    """int64 (side,): how many windows hold each position along one axis."""
    side = layer.in_shape[1 + axis]
    first = np.arange(layer.out_shape[1 + axis]) * layer.stride[axis] - layer.padding[axis]
    begins = np.bincount(np.clip(first, 0, side), minlength=side + 1)
    ends = np.bincount(np.clip(first + layer.kernel[axis], 0, side), minlength=side + 1)
    return np.asarray(np.cumsum(begins - ends)[:side], np.int64)


def count_additions(layer: network.Synaptic, values: Array) -> int:
    """Additions executed for events (B, T, positions, channels); 0 for an analog input."""
    if layer.edge == "analog":
        return 0
    events = np.count_nonzero(values, axis=(0, 1)).reshape(-1)
    by_source = fan_out.from_channel_last(events, layer.in_shape)
    return int((by_source * fan_out.additions_map(layer.synapses, layer.neurons)).sum())


def readout_fanout(readout: network.ReadoutLayer) -> Array:
    """int64: nonzero weights of each sum; (C,) over space, otherwise in the input's shape."""
    if readout.weight is None:
        lengths = np.zeros(readout.sums, np.int64)
    else:
        lengths = np.count_nonzero(readout.weight, axis=0).astype(np.int64)
    return lengths if readout.space else fan_out.from_channel_last(lengths, readout.in_shape)


def readout_steps(readout: network.ReadoutLayer, values: Array) -> counters.StepCounts:
    """The head's inputs are graded: sums over time (and space), or those of one step.

    values: (B, T, positions, channels). Counts are (weighings by the head, B).
    """
    batch, steps = values.shape[:2]
    parts = [values[:, at].sum(axis=1, dtype=np.int64) for at in readout.weighings(steps)]
    over_time = np.stack(parts)
    sums = over_time.sum(axis=2) if readout.space else over_time.reshape(len(parts), batch, -1)
    sums, weight = np.abs(sums), readout.weight
    nonzero = np.zeros((readout.classes, readout.sums), np.int64) if weight is None else weight != 0
    lengths = nonzero.sum(axis=0, dtype=np.int64)
    events = sums != 0
    reached = events.astype(np.int64) @ nonzero.T.astype(np.int64)
    biased = 0 if readout.bias is None else int(np.count_nonzero(readout.bias))
    charged = {}
    if readout.neuron is not None:  # whose spikes, if any, nothing reads
        charged = {"neuron_updates": np.full((len(parts), batch), readout.classes, np.int64)}
    return counters.StepCounts(
        charged
        | {
            "events_in": np.count_nonzero(events, axis=2).astype(np.int64),
            "spikes_in": sums.sum(axis=2),
            "synops_events": (events * lengths).sum(axis=2),
            "synops": (sums * lengths).sum(axis=2),
            "touched": np.count_nonzero(reached, axis=2).astype(np.int64),
            "bias_adds": np.full((len(parts), batch), biased, np.int64),
        }
    )


def totals_of(
    layer: network.Layer, held: Held, spikes: Mapping[str, Array]
) -> dict[str, counters.LayerCounts]:
    """As `steps_of`, summed over steps and samples."""
    return {name: counts.total() for name, counts in steps_of(layer, held, spikes).items()}


@dispatch.operation_table(network.Layer)
def steps_of(
    layer: network.Layer, held: Held, spikes: Mapping[str, Array]
) -> dict[str, counters.StepCounts]:
    """What a layer counts, by projection, population without one, or pooling.

    held: gives what a source holds, (B, T or 1, positions, channels). spikes: of each population,
    (T, B, ...).
    """
    raise steps_of.unknown(layer)


@steps_of.on(network.SpikingLayer)
def _(layer: network.SpikingLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    counts = projection_steps(layer, held(layer.source)) + neuron_steps(layer, spikes[layer.name])
    return {layer.projection: counts}


@steps_of.on(network.CurrentLayer)
def _(layer: network.CurrentLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    return {layer.projection: projection_steps(layer, held(layer.source))}


@steps_of.on(network.PopulationLayer)
def _(layer: network.PopulationLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    return {layer.name: neuron_steps(layer, spikes[layer.name])}


@steps_of.on(network.RecurrentLayer)
def _(layer: network.RecurrentLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    """By its feedback, which its own spikes of the step before reach."""
    back, sent = layer.feedback, spikes[layer.name]
    arriving = fed_back(back, sent)
    return {back.name: projection_steps(back, arriving) + neuron_steps(layer, sent)}


def fed_back(back: network.CurrentLayer, sent: Array) -> Array:
    """What reaches a feedback, (B, T, positions, channels), of what was sent, (T, B, ...)."""
    before = np.zeros(sent.shape, sent_dtype((back.edge, back.bound)))
    before[1:] = sent[:-1]
    return np.swapaxes(to_channel_last(before, back.in_shape), 0, 1)


@steps_of.on(network.PoolLayer)
def _(layer: network.PoolLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    return {layer.name: pooling_steps(layer, held(layer.source))}


@steps_of.on(network.MergeLayer, network.ScatterLayer)
def _(layer: network.MapLayer, held: Held, spikes: Any) -> dict[str, counters.StepCounts]:
    return {}
