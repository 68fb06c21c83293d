"""From layers to calls: which kernel runs on which arrays.

Preparation copies a layer's rows into private memory and derives the tables that the kernels
follow; this is shared and never written again. A program is the list of kernel calls for one
sample, bound to the buffers of one workspace: running it is calling them in order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.runtime import kernels
from soul_deploy.runtime.eventnet import (
    Convolution,
    DenseRows,
    EventNetwork,
    Layer,
    Matrix,
    PoolLayer,
    ReadoutLayer,
    Shape,
    SparseRows,
    SpikingLayer,
)
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.sweep import sweep_numbers, sweep_of
from soul_deploy.runtime.windows import axis_runs, gather_table

ALIGNMENT = 64
NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Call:
    """One kernel call."""

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Prepared:
    """A projection ready to run: kernel(values, *tables, rows, amounts, out) adds its synapses.

    bias: (m,) float32 that repeats over the n outputs, or empty.
    """

    kernel: Callable[..., None]
    tables: tuple[Any, ...]
    bias: Array


def aligned(shape: Shape, dtype: npt.DTypeLike) -> Array:
    """An uninitialised array whose data starts at a multiple of 64 bytes (a cache line)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def private(array: Array | None) -> Array:
    """An aligned copy; empty float32 for None. Read-only maps are slow to pass to kernels."""
    if array is None:
        return NOTHING
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def prepare(layer: SpikingLayer) -> Prepared:
    """Copy the rows and derive the tables of a layer's projection."""
    synapses = layer.synapses
    bias = private(synapses.bias)
    if isinstance(synapses, Matrix):
        if isinstance(synapses.rows, DenseRows):
            return Prepared(kernels.multiply_dense, (private(synapses.rows.weight),), bias)
        return Prepared(kernels.multiply_sparse, _row_arrays(synapses.rows), bias)
    if isinstance(synapses.rows, DenseRows) and layer.edge == "analog":
        tables = _gather_tables(synapses, synapses.rows)
        return Prepared(kernels.convolve_analog, tables, bias)
    if isinstance(synapses.rows, DenseRows):
        tables = _dense_tables(synapses, synapses.rows)
        return Prepared(kernels.convolve_dense, tables, bias)
    return Prepared(kernels.convolve_sparse, _sparse_tables(synapses, synapses.rows), bias)


def _row_arrays(rows: SparseRows) -> tuple[Array, Array, Array]:
    return private(rows.starts), private(rows.targets), private(rows.weight)


def _dense_tables(convolution: Convolution, rows: DenseRows) -> tuple[Any, ...]:
    """Arguments of kernels.convolve_dense between the values and the scratch."""
    contiguous = (
        convolution.stride[1] == 1 and convolution.dilation[1] == 1 and convolution.groups == 1
    )
    y = axis_runs(convolution, 0, merge=False)
    x = axis_runs(convolution, 1, merge=contiguous)
    return (
        private(rows.weight),
        convolution.groups,
        convolution.out_shape[2],
        convolution.out_shape[0],
        *(y.first, y.tap, y.out),
        *(x.first, x.tap, x.out, x.length),
    )


def _gather_tables(convolution: Convolution, rows: DenseRows) -> tuple[Any, ...]:
    """Arguments of kernels.convolve_analog between the values and the scratch."""
    groups = convolution.groups
    by_group = rows.weight.reshape(groups, -1, rows.weight.shape[-1])
    return private(by_group), groups, private(gather_table(convolution))


def _sparse_tables(convolution: Convolution, rows: SparseRows) -> tuple[Any, ...]:
    """Arguments of kernels.convolve_sparse between the values and the scratch."""
    merge = convolution.stride == (1, 1)
    channels, _, columns = convolution.out_shape
    pitch_x = convolution.dilation[1] * channels if merge else 0
    pitch_y = convolution.dilation[0] * columns * channels if merge else 0
    y = axis_runs(convolution, 0, merge=merge)
    x = axis_runs(convolution, 1, merge=merge)
    starts, targets, weight = _row_arrays(rows)
    if merge:
        targets += _tap_offsets(convolution, starts, pitch_y, pitch_x)
    return (
        *(starts, targets, weight),
        *convolution.kernel,
        *(columns, channels),
        *(pitch_y, pitch_x),
        *(y.first, y.tap, y.out, y.length),
        *(x.first, x.tap, x.out, x.length),
    )


def _tap_offsets(convolution: Convolution, starts: Array, pitch_y: int, pitch_x: int) -> Array:
    """uint32 (synapses,): kernel row · pitch_y + kernel column · pitch_x of each synapse."""
    height, width = convolution.kernel
    per_tap = np.arange(height)[:, None] * pitch_y + np.arange(width) * pitch_x
    per_row = np.tile(per_tap.reshape(-1).astype(np.uint32), convolution.in_shape[0])
    lengths = starts[1:].astype(np.int64) - starts[:-1]
    return np.repeat(per_row, lengths)


def channel_last(shape: Shape) -> tuple[int, int]:
    """(positions, channels) of a population's values."""
    return (shape[1] * shape[2], shape[0]) if len(shape) == 3 else (1, shape[0])


@dataclass(frozen=True)
class Workspace:
    """Buffers and calls for one sample; used by one caller at a time.

    values    by layer name, the input included: (T, positions, channels); spikes are uint8
    membranes by layer name: (n,) float32
    calls     in order
    scores    (classes,) float32, written by the last call
    """

    values: Mapping[str, Array]
    membranes: Mapping[str, Array]
    calls: tuple[Call, ...]
    scores: Array

    def run(self) -> None:
        """Execute all calls on what `values` holds for the input."""
        for call in self.calls:
            call.kernel(*call.arguments)


def build_workspace(
    network: EventNetwork,
    prepared: Mapping[str, Prepared],
    *,
    input_steps: int,
    steps: int,
    carry: bool,
) -> Workspace:
    """Buffers and calls for `steps` steps. input_steps 1: a static image (or a single step).

    carry: membranes are kept between runs instead of starting at rest.
    """
    values = {
        network.input_name: aligned((input_steps, *channel_last(network.input_shape)), np.float32)
    }
    membranes: dict[str, Array] = {}
    calls: list[Call] = []
    currents = aligned((_largest_current(network, input_steps, steps),), np.float32)
    for layer in network.layers:
        source = values[layer.source]
        values[layer.name] = aligned((steps, *channel_last(layer.out_shape)), np.uint8)
        if isinstance(layer, SpikingLayer):
            v = membranes[layer.name] = aligned((math.prod(layer.out_shape),), np.float32)
            v[:] = layer.neuron.rest
            spikes = values[layer.name]
            current = currents[: len(source) * len(v)].reshape(len(source), len(v))
            calls += spiking_calls(
                layer, prepared[layer.name], source, current, v, spikes, carry=carry
            )
        else:
            calls.append(pool_call(layer, source, values[layer.name]))
    scores = aligned((network.readout.classes,), np.float32)
    calls += readout_calls(network.readout, values[network.readout.source], scores)
    return Workspace(values, membranes, tuple(calls), scores)


def _largest_current(network: EventNetwork, input_steps: int, steps: int) -> int:
    """Elements of the largest layer's currents; one buffer serves all layers in turn."""
    return max(
        (input_steps if layer.source == network.input_name else steps) * math.prod(layer.out_shape)
        for layer in network.spiking_layers
    )


def spiking_calls(
    layer: SpikingLayer,
    prepared: Prepared,
    source: Array,
    current: Array,
    v: Array,
    spikes: Array,
    *,
    carry: bool,
) -> list[Call]:
    """Bias, synapses, neurons.

    source (T or 1, positions, channels), current (T or 1, n), v (n,), spikes (T, positions, C).
    """
    values, rows, amounts = _scratch(layer, source)
    return [
        Call(kernels.start_currents, (current, prepared.bias)),
        Call(prepared.kernel, (values, *prepared.tables, rows, amounts, current)),
        Call(
            sweep_of(layer.neuron),
            (
                current,
                *sweep_numbers(layer.neuron),
                carry,
                v,
                spikes.reshape(len(spikes), len(v)),
            ),
        ),
    ]


def _scratch(layer: SpikingLayer, source: Array) -> tuple[Array, Array, Array]:
    """The source as the kernel sees it, and room for the events it collects at once."""
    events = source.shape[2]
    if isinstance(layer.synapses, Matrix):
        source = source.reshape(len(source), 1, -1)
        events = source.shape[2]
    else:
        events *= math.prod(layer.synapses.kernel)
    return source, np.empty(events, np.uint32), np.empty(events, np.float32)


def pool_call(layer: PoolLayer, source: Array, out: Array) -> Call:
    """Max pooling of (T, H·W, C) into (T, OH·OW, C)."""
    arguments = (
        *(source, layer.in_shape[2]),
        *(layer.kernel, layer.stride, layer.padding),
        *(layer.out_shape[2], out),
    )
    return Call(kernels.max_pool, arguments)


def readout_calls(readout: ReadoutLayer, source: Array, scores: Array) -> list[Call]:
    """Sums, then scores."""
    spikes = source if readout.space else source.reshape(len(source), 1, -1)
    sums = np.empty(readout.sums, np.int64)
    scale = np.float32(readout.scale(len(source)))
    summing = Call(kernels.sum_spikes, (spikes, sums))
    if readout.weight is None:
        return [summing, Call(kernels.vote, (sums, readout.votes, scale, scores))]
    weight = private(readout.weight.T)
    return [summing, Call(kernels.score, (sums, weight, private(readout.bias), scale, scores))]


def prepare_all(layers: tuple[Layer, ...]) -> dict[str, Prepared]:
    """`prepare` for every layer with synapses, by name."""
    return {layer.name: prepare(layer) for layer in layers if isinstance(layer, SpikingLayer)}
