"""The synapses of each presynaptic neuron, written out: what the latency path adds per event."""

import math

import numpy as np

from soul_deploy.base import Array, dispatch, memory
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.tap_tables import tap_table
from soul_deploy.runtime.kernels.rows import count_row_synapses, fill_rows

Rows = tuple[Array, Array, Array]
"""(starts int64 (n_in + 1,), targets int32, weight): row j leads to targets[starts[j]:starts[j+1]],
which rise; none is dead, no weight is 0.
"""
SYNAPSE_BYTES = 8


def event_rows(layer: net.Synaptic, max_memory: int | None) -> Rows:
    """Of a layer. Raises LimitError for rows of more bytes than `max_memory`; None: 4 GiB."""
    size = math.prod(layer.current_shape)
    live = np.ones(size, np.bool_) if layer.updated is None else layer.updated
    return _rows(layer.synapses, layer.name, live, max_memory)


@dispatch.operation_table(net.Synapses)
def _rows(synapses: net.Synapses, name: str, live: Array, max_memory: int | None) -> Rows:
    raise _rows.unknown(synapses)


@_rows.on(net.MatrixSynapses)
def _matrix(matrix: net.MatrixSynapses, name: str, live: Array, max_memory: int | None) -> Rows:
    sources, targets, weight = _nonzero(matrix)
    kept = live[targets]
    _require(name, int(kept.sum()), max_memory)
    lengths = np.bincount(sources[kept], minlength=matrix.row_count)
    return _starts(lengths), targets[kept].astype(np.int32), weight[kept]


@_rows.on(net.ConvSynapses)
def _shared(convolution: net.ConvSynapses, name: str, live: Array, max_memory: int | None) -> Rows:
    rows, targets, weight = _nonzero(convolution)
    y, x = (tap_table(convolution, axis, merge=False) for axis in (0, 1))
    channels, _, width = convolution.out_shape
    tables = (
        *(_starts(np.bincount(rows, minlength=convolution.row_count)), targets, weight),
        *(convolution.kernel, width, channels, y.first, y.tap, y.out, x.first, x.tap, x.out),
    )
    inputs = math.prod(convolution.in_shape)
    lengths, every = np.empty(inputs, np.int64), np.ones(inputs, np.bool_)
    nothing = np.empty(0, np.int32), np.empty(0, weight.dtype)
    count_row_synapses(*tables, every, live, lengths, *nothing)
    total = int(lengths.sum())
    _require(name, total, max_memory)
    out = np.empty(total, np.int32), np.empty(total, weight.dtype)
    fill_rows(*tables, every, live, lengths, *out)
    return _starts(lengths), *out


def _nonzero(synapses: net.Synapses) -> Rows:
    """(row, target, weight) of each weight that is not 0."""
    rows = synapses.rows
    if isinstance(rows, net.SparseRows):
        of_row = np.repeat(np.arange(synapses.row_count), rows.lengths)
        return of_row, rows.targets.astype(np.int64), np.array(rows.weight)
    assert isinstance(rows, net.DenseRows)
    flat = rows.weight.reshape(synapses.row_count, -1)
    of_row, target = np.nonzero(flat)
    block = of_row // (len(flat) // synapses.blocks)
    return of_row, target + block * flat.shape[1], flat[of_row, target]


def _starts(lengths: Array) -> Array:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _require(name: str, synapses: int, max_memory: int | None) -> None:
    allowed = memory.WORK_BYTES if max_memory is None else max_memory
    what = f"{name}: {synapses:,} synapses, written out for the latency path,"
    memory.require_memory(what, SYNAPSE_BYTES * synapses, allowed, memory.RAISE_IT)
