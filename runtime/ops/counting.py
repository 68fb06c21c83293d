"""Operation counts of the event network, from the very rows that it executes.

Counting is a separate pass over recorded events, so that running costs nothing extra. Only
nonzero weights onto live targets count: in dense rows they are found first, and rows shared by all
positions also lead to neurons that are not live. What is executed all the same is told apart.
Definitions: docs/counting.md.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import (
    Convolution,
    DenseRows,
    EventNetwork,
    Matrix,
    Neurons,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
    SpikingLayer,
    Synapses,
    Synaptic,
)
from soul_deploy.runtime.format.tap_tables import AxisRuns, axis_runs, tap_table
from soul_deploy.runtime.kernels.counting import count_convolution, count_matrix
from soul_deploy.runtime.ops.counters import (
    CountLimits,
    LayerCounts,
    StepCounts,
    require_edge_values,
)


def nonzero_rows(synapses: Synapses) -> tuple[Array, Array]:
    """(starts int64, targets int64) of the nonzero weights: neurons, or output channels."""
    rows = synapses.rows
    if not isinstance(rows, DenseRows):
        return rows.starts.astype(np.int64), rows.targets.astype(np.int64)
    flat = rows.weight.reshape(-1, rows.weight.shape[-1])
    row, target = np.nonzero(flat)
    starts = np.zeros(len(flat) + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(row, minlength=len(flat)))
    if isinstance(synapses, Convolution):
        inner = synapses.in_shape[0] // synapses.groups
        group = row // (inner * math.prod(synapses.kernel))
        target = target + group * flat.shape[1]
    return starts, target.astype(np.int64)


def fanout_map(synapses: Synapses, live: Array | None = None) -> Array:
    """int64 map in the input's shape: nonzero synapses onto live neurons, per presynaptic neuron.

    live: bool (n,), channel-last, over the current's neurons; None: all.
    """
    starts, targets = nonzero_rows(synapses)
    if isinstance(synapses, Convolution):
        if live is None:
            return _spread(synapses, np.diff(starts))
        return _onto_live(synapses, starts, targets, live)
    if live is None:
        return _from_channel_last(np.diff(starts), synapses.in_shape)
    before = np.zeros(len(targets) + 1, np.int64)
    np.cumsum(live[targets], out=before[1:])
    return _from_channel_last(before[starts[1:]] - before[starts[:-1]], synapses.in_shape)


def additions_map(synapses: Synapses, neurons: int) -> Array:
    """int64 map in the input's shape: additions that an event of each presynaptic neuron costs.

    Zeros in dense rows are added too, and so are synapses of shared rows onto neurons that are not
    live. A dense matrix runs on the columns of the live `neurons` only.
    """
    if not isinstance(synapses.rows, DenseRows):
        return fanout_map(synapses)
    if isinstance(synapses, Matrix):
        return np.full(synapses.in_shape, neurons, np.int64)
    share = synapses.out_shape[0] // synapses.groups
    return _spread(
        synapses, np.full(synapses.in_shape[0] * math.prod(synapses.kernel), share, np.int64)
    )


def _spread(synapses: Convolution, lengths: Array) -> Array:
    """Row lengths summed over the rows that lead into the output from each position."""
    per_tap = lengths.reshape(synapses.in_shape[0], *synapses.kernel)
    rows, columns = tap_table(synapses, 0), tap_table(synapses, 1)
    spread: Array = np.einsum("yi,cij,xj->cyx", rows, per_tap, columns, optimize=True)
    return spread


def _onto_live(synapses: Convolution, starts: Array, targets: Array, live: Array) -> Array:
    """One kernel position at a time: (channels × output channels) times the live outputs met."""
    (channels, height, width), (outputs, *_), (kh, kw) = (
        synapses.in_shape,
        synapses.out_shape,
        synapses.kernel,
    )
    alive = live.reshape(synapses.out_shape[1], synapses.out_shape[2], outputs).astype(np.float64)
    found = np.zeros((channels, height, width), np.float64)
    rows, columns = axis_runs(synapses, 0, merge=False), axis_runs(synapses, 1, merge=False)
    by_row, by_column = _by_tap(rows, kh), _by_tap(columns, kw)
    for i, (y, oy) in enumerate(by_row):
        for j, (x, ox) in enumerate(by_column):
            used = np.zeros((channels, outputs))
            for c in range(channels):
                r = (c * kh + i) * kw + j
                used[c, targets[starts[r] : starts[r + 1]]] = 1
            if not len(y) * len(x) or not used.any():
                continue
            met = alive[oy[:, None], ox].reshape(-1, outputs)
            found[:, y[:, None], x] += (used @ met.T).reshape(channels, len(y), len(x))
    return found.astype(np.int64)


def _by_tap(runs: AxisRuns, kernel: int) -> list[tuple[Array, Array]]:
    """Of every kernel index: the input positions that meet it, and the outputs there."""
    counts: Array = np.diff(runs.first.astype(np.int64))
    position = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(runs.tap, kind="stable")
    bounds = np.searchsorted(runs.tap[order], np.arange(kernel + 1))
    parts = [order[first:last] for first, last in pairwise(bounds)]
    return [(position[part], runs.out[part]) for part in parts]


def _from_channel_last(values: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) == 1:
        return values
    return np.moveaxis(values.reshape(shape[1], shape[2], shape[0]), -1, 0)


def projection_steps(layer: Synaptic, values: Array) -> StepCounts:
    """What the events of a layer's source cost. values (B, T or 1, positions, channels).

    Raises VerificationError for values that the edge cannot hold.
    """
    require_edge_values(layer.name, values, edge_bound(layer))
    synapses = layer.synapses
    starts, targets = nonzero_rows(synapses)
    touched = np.zeros(math.prod(layer.current_shape), np.uint8)
    live = np.ones(len(touched), np.bool_) if layer.updated is None else layer.updated
    walk = _walk(synapses)
    batch, steps = values.shape[:2]
    walked = np.zeros((steps, batch, 3), np.int64)  # synapses, synapses times value, touched
    for b, t in np.ndindex(batch, steps):
        touched[:] = 0
        walk(np.ascontiguousarray(values[b, t]), starts, targets, live, touched, walked[t, b, :2])
        walked[t, b, 2] = np.count_nonzero(touched)
    biased = np.full((steps, batch), biased_targets(layer), np.int64)
    if layer.edge == "analog":
        return StepCounts({"macs_effective": walked[..., 0], "bias_adds": biased})
    by_step = values.swapaxes(0, 1).reshape(steps, batch, -1)
    return StepCounts(
        {
            "events_in": np.count_nonzero(by_step, axis=2).astype(np.int64),
            "spikes_in": by_step.sum(axis=2, dtype=np.int64),
            "synops_events": walked[..., 0],
            "synops": walked[..., 1],
            "touched": walked[..., 2],
            "bias_adds": biased,
        }
    )


def edge_bound(layer: Synaptic) -> int | None:
    """The largest value that can arrive; None: an analog edge."""
    return None if layer.edge == "analog" else layer.bound or 1


def biased_targets(layer: Synaptic) -> int:
    """Live targets whose bias is not 0."""
    bias = layer.synapses.bias
    if bias is None:
        return 0
    size = math.prod(layer.current_shape)
    biased = np.broadcast_to(bias != 0, (size // len(bias), len(bias))).reshape(-1)
    return int(np.count_nonzero(biased if layer.updated is None else biased & layer.updated))


def count_projection(layer: Synaptic, values: Array) -> LayerCounts:
    """`projection_steps`, summed."""
    return projection_steps(layer, values).total()


def limits_of(layer: Synaptic, slots: int) -> CountLimits:
    """What its structure allows in `slots` = executed steps × samples."""
    synapses, size = layer.synapses, math.prod(layer.current_shape)
    fan_out = math.prod(synapses.out_shape)
    if isinstance(synapses, Convolution):
        fan_out = synapses.out_shape[0] // synapses.groups * math.prod(synapses.kernel)
    live = size if layer.updated is None else int(layer.updated.sum())
    stored = int(fanout_map(synapses, layer.updated).sum())
    return CountLimits(slots, edge_bound(layer), stored, live, fan_out)


def neuron_steps(layer: Neurons, spikes_out: Array) -> StepCounts:
    """Updates and spikes; spikes_out (T, B, ...), generated channels behind the others."""
    steps, batch = spikes_out.shape[:2]
    of_neurons = spikes_out[:, :, : layer.current_shape[0]]  # generated channels are not updated
    fired = np.count_nonzero(of_neurons.reshape(steps, batch, -1), axis=2).astype(np.int64)
    updates = np.full((steps, batch), layer.neurons, np.int64)
    return StepCounts({"neuron_updates": updates, "spikes_out": fired})


def count_neurons(layer: Neurons, spikes_out: Array) -> LayerCounts:
    """`neuron_steps`, summed."""
    return neuron_steps(layer, spikes_out).total()


def pooling_steps(layer: PoolLayer, values: Array) -> StepCounts:
    """Nonzero inputs × the windows that hold them; values (B, T or 1, positions, channels)."""
    rows, columns = (_windows(layer, axis) for axis in (0, 1))
    windows = np.outer(rows, columns).reshape(1, 1, -1)
    found: Array = (np.count_nonzero(values, axis=3) * windows).sum(axis=2, dtype=np.int64)
    return StepCounts({"pool_ops": np.ascontiguousarray(found.T)})


def _windows(layer: PoolLayer, axis: int) -> Array:
    """int64 (side,): how many windows hold each position along one axis."""
    side = layer.in_shape[1 + axis]
    first = np.arange(layer.out_shape[1 + axis]) * layer.stride[axis] - layer.padding[axis]
    begins = np.bincount(np.clip(first, 0, side), minlength=side + 1)
    ends = np.bincount(np.clip(first + layer.kernel[axis], 0, side), minlength=side + 1)
    held: Array = np.cumsum(begins - ends)[:side].astype(np.int64)
    return held


def count_spiking(layer: SpikingLayer, values: Array, spikes_out: Array) -> LayerCounts:
    """Both of a projection with a population behind it."""
    return count_projection(layer, values) + count_neurons(layer, spikes_out)


def count_additions(layer: Synaptic, values: Array) -> int:
    """Additions executed for events (B, T, positions, channels); 0 for an analog input."""
    if layer.edge == "analog":
        return 0
    events = np.count_nonzero(values, axis=(0, 1)).reshape(-1)
    by_source = _from_channel_last(events, layer.in_shape)
    return int((by_source * additions_map(layer.synapses, layer.neurons)).sum())


def _walk(synapses: Synapses) -> Callable[[Array, Array, Array, Array, Array, Array], None]:
    """The counting kernel: (values of a step, starts, targets, live, touched, counts)."""
    if isinstance(synapses, Matrix):
        return lambda values, *rest: count_matrix(values.reshape(-1), *rest)
    y = axis_runs(synapses, 0, merge=False)
    x = axis_runs(synapses, 1, merge=False)
    channels, _, width = synapses.out_shape
    tables = (synapses.kernel, width, channels, y.first, y.tap, y.out, x.first, x.tap, x.out)

    def walk(values: Array, starts: Array, targets: Array, *rest: Array) -> None:
        count_convolution(values, starts, targets, *tables, *rest)

    return walk


def readout_sums(readout: ReadoutLayer, values: Array) -> Array:
    """int64 (B, sums) from (B, T, positions, channels)."""
    over_time: Array = values.sum(axis=1, dtype=np.int64)
    return over_time.sum(axis=1) if readout.space else over_time.reshape(len(values), -1)


def readout_fanout(readout: ReadoutLayer) -> Array:
    """int64: nonzero weights of each sum; (C,) over space, otherwise in the input's shape."""
    if readout.weight is None:
        lengths = np.zeros(readout.sums, np.int64)
    else:
        lengths = np.count_nonzero(readout.weight, axis=0).astype(np.int64)
    return lengths if readout.space else _from_channel_last(lengths, readout.in_shape)


def readout_steps(readout: ReadoutLayer, values: Array) -> StepCounts:
    """The head's inputs are graded: sums over time (and space). One step, (1, B)."""
    sums = readout_sums(readout, values)
    weight = readout.weight
    nonzero = np.zeros((readout.classes, readout.sums), np.int64) if weight is None else weight != 0
    lengths = nonzero.sum(axis=0, dtype=np.int64)
    events = sums != 0
    reached = events.astype(np.int64) @ nonzero.T.astype(np.int64)
    biased = 0 if readout.bias is None else int(np.count_nonzero(readout.bias))
    found = {
        "events_in": np.count_nonzero(events, axis=1).astype(np.int64),
        "spikes_in": sums.sum(axis=1),
        "synops_events": (events * lengths).sum(axis=1),
        "synops": (sums * lengths).sum(axis=1),
        "touched": np.count_nonzero(reached, axis=1).astype(np.int64),
        "bias_adds": np.full(len(sums), biased, np.int64),
    }
    return StepCounts({name: array[None] for name, array in found.items()})


def count_layers(
    events: EventNetwork, held: Mapping[str, Array], spikes: Mapping[str, Array]
) -> tuple[dict[str, LayerCounts], dict[str, int]]:
    """Counts by projection, population without one, and readout; additions by projection.

    held: what sources held, (B, steps, positions, channels). spikes: of populations, (T, B, ...).
    """
    counts: dict[str, LayerCounts] = {}
    executed: dict[str, int] = {}
    for layer in events.layers:
        ran = LayerCounts()
        if isinstance(layer, Neurons):
            ran = count_neurons(layer, spikes[layer.name])
        if isinstance(layer, Synaptic):
            values = held[layer.source]
            counts[layer.projection] = ran + count_projection(layer, values)
            executed[layer.projection] = count_additions(layer, values)
        elif isinstance(layer, PopulationLayer):
            counts[layer.name] = ran
    readout = events.readout
    counts[readout.name] = count_readout(readout, held[readout.source])
    return counts, executed


def count_readout(readout: ReadoutLayer, values: Array) -> LayerCounts:
    """`readout_steps`, summed."""
    return readout_steps(readout, values).total()
