"""Synapses as they are counted: where each leads, and how many leave each presynaptic neuron.

Only nonzero weights count: in dense rows they are found first.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from soul_deploy.base import Array, dispatch
from soul_deploy.runtime.format import network, tap_tables
from soul_deploy.runtime.kernels.rows import count_convolution, count_matrix


def nonzero_rows(synapses: network.Synapses) -> tuple[Array, Array]:
    """(starts int64, targets int64) of the nonzero weights: neurons, or output channels."""
    starts = np.concatenate([[0], np.cumsum(synapses.rows.lengths)])
    return starts, _targets(synapses.rows, synapses)


@dispatch.operation_table(network.Rows)
def _targets(rows: network.Rows, synapses: network.Synapses) -> Array:
    raise _targets.unknown(rows)


@_targets.on(network.SparseRows)
def _(rows: network.SparseRows, synapses: network.Synapses) -> Array:
    return rows.targets.astype(np.int64)


@_targets.on(network.DenseRows)
def _(rows: network.DenseRows, synapses: network.Synapses) -> Array:
    flat = rows.weight.reshape(synapses.row_count, -1)
    row, target = np.nonzero(flat)
    block = row // (len(flat) // synapses.blocks)
    return np.asarray(target + block * flat.shape[1], np.int64)


def fanout_map(synapses: network.Synapses, live: Array | None = None) -> Array:
    """int64 map in the input's shape: nonzero synapses onto live neurons, per presynaptic neuron.

    live: bool (n,), channel-last, over the current's neurons; None: all.
    """
    if live is None:
        return _by_input(synapses, synapses.rows.lengths)
    return _onto_live(synapses, *nonzero_rows(synapses), live)


def additions_map(synapses: network.Synapses, neurons: int) -> Array:
    """int64 map in the input's shape: additions that an event of each presynaptic neuron costs.

    Zeros in dense rows are added too, and so are synapses of shared rows onto neurons that are not
    live. A dense matrix runs on the columns of the live `neurons` only.
    """
    if not synapses.rows.dense:
        return fanout_map(synapses)
    added = synapses.rows.weight.shape[-1] if synapses.shared else neurons
    return _by_input(synapses, np.full(synapses.row_count, added, np.int64))


@dispatch.operation_table(network.Synapses)
def _by_input(synapses: network.Synapses, lengths: Array) -> Array:
    """Row lengths summed over the rows that lead into the output from each input neuron."""
    raise _by_input.unknown(synapses)


@_by_input.on(network.MatrixSynapses)
def _(synapses: network.MatrixSynapses, lengths: Array) -> Array:
    return from_channel_last(lengths, synapses.in_shape)


@_by_input.on(network.ConvSynapses)
def _(synapses: network.ConvSynapses, lengths: Array) -> Array:
    per_tap = lengths.reshape(synapses.in_shape[0], *synapses.kernel)
    rows, columns = tap_tables.tap_incidence(synapses, 0), tap_tables.tap_incidence(synapses, 1)
    return np.asarray(np.einsum("yi,cij,xj->cyx", rows, per_tap, columns, optimize=True))


@dispatch.operation_table(network.Synapses)
def _onto_live(synapses: network.Synapses, starts: Array, targets: Array, live: Array) -> Array:
    raise _onto_live.unknown(synapses)


@_onto_live.on(network.MatrixSynapses)
def _(synapses: network.MatrixSynapses, starts: Array, targets: Array, live: Array) -> Array:
    before = np.zeros(len(targets) + 1, np.int64)
    np.cumsum(live[targets], out=before[1:])
    return from_channel_last(before[starts[1:]] - before[starts[:-1]], synapses.in_shape)


@_onto_live.on(network.ConvSynapses)
def _(synapses: network.ConvSynapses, starts: Array, targets: Array, live: Array) -> Array:
    """One kernel position at a time: (channels × output channels) times the live outputs met."""
    (channels, *_), (outputs, *space) = synapses.in_shape, synapses.out_shape
    kh, kw = synapses.kernel
    alive = live.reshape(*space, outputs).astype(np.float64)
    found = np.zeros(synapses.in_shape, np.float64)
    by_row, by_column = (
        _by_tap(tap_tables.tap_table(synapses, axis, merge=False), synapses.kernel[axis])
        for axis in (0, 1)
    )
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


def _by_tap(runs: tap_tables.TapTable, kernel: int) -> list[tuple[Array, Array]]:
    """Of every kernel index: the input positions that meet it, and the outputs there."""
    counts: Array = np.diff(runs.first.astype(np.int64))
    position = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(runs.tap, kind="stable")
    bounds = np.searchsorted(runs.tap[order], np.arange(kernel + 1))
    parts = [order[first:last] for first, last in pairwise(bounds)]
    return [(position[part], runs.out[part]) for part in parts]


def from_channel_last(values: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) == 1:
        return values
    return np.moveaxis(values.reshape(shape[1], shape[2], shape[0]), -1, 0)


Walk = Callable[[Array, Array, Array, Array, Array, Array], None]
"""A counting kernel: (values of a step, starts, targets, live, touched, counts)."""


@dispatch.operation_table(network.Synapses)
def walk_of(synapses: network.Synapses) -> Walk:
    raise walk_of.unknown(synapses)


@walk_of.on(network.MatrixSynapses)
def _(synapses: network.MatrixSynapses) -> Walk:
    return lambda values, *rest: count_matrix(values.reshape(-1), *rest)


@walk_of.on(network.ConvSynapses)
def _(synapses: network.ConvSynapses) -> Walk:
    y = tap_tables.tap_table(synapses, 0, merge=False)
    x = tap_tables.tap_table(synapses, 1, merge=False)
    channels, _, width = synapses.out_shape
    tables = (synapses.kernel, width, channels, y.first, y.tap, y.out, x.first, x.tap, x.out)

    def walk(values: Array, starts: Array, targets: Array, *rest: Array) -> None:
        count_convolution(values, starts, targets, *tables, *rest)

    return walk
