"""From layers to calls: which kernel runs on which arrays.

Preparation copies a layer's rows into private memory and derives the tables that the kernels
follow; this is shared and never written again. A layer's calls are bound to buffers
(workspace.py): running it is calling them in order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.runtime import kernels, merging
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.eventnet import (
    Convolution,
    DenseRows,
    Layer,
    Matrix,
    MergeLayer,
    PoolLayer,
    ReadoutLayer,
    ScatterLayer,
    Shape,
    SparseRows,
    SpikingLayer,
    Synaptic,
)
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.packing import Packing, packed_rows, packing_of, reads_packed
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

    bias      (m,) float32 that repeats over the columns of the currents, or empty
    columns   of the currents that the kernel leaves: the current's neurons, or the packed ones
    neurons   that are updated
    packing   of the population, if there is one and it is packed
    source    packing of the source, if the kernel takes that source's spikes packed
    """

    kernel: Callable[..., None]
    tables: tuple[Any, ...]
    bias: Array
    columns: int
    neurons: int
    packing: Packing | None = None
    source: Packing | None = None

    @property
    def picked(self) -> Array | None:
        """Which currents to take over before the neurons, if not all of them."""
        return (
            None if self.packing is None or self.columns == self.neurons else self.packing.updated
        )


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


def prepare(layer: Synaptic, source: Layer | None = None) -> Prepared:
    """Copy the rows and derive the tables of a layer's projection.

    source: the layer it reads; None for the input.
    """
    packing = packing_of(layer)
    if isinstance(layer.synapses, Matrix):
        read = packing_of(source) if reads_packed(layer, source) else None
        return _prepare_matrix(layer.synapses, packing, read)
    kernel, tables = _convolution_kernel(layer, layer.synapses)
    columns = math.prod(layer.current_shape)
    bias = private(layer.synapses.bias)
    return Prepared(kernel, tables, bias, columns, layer.neurons, packing)


def _prepare_matrix(matrix: Matrix, packing: Packing | None, source: Packing | None) -> Prepared:
    """Rows and columns of live neurons only."""
    rows, bias = matrix.rows, matrix.bias
    columns = math.prod(matrix.out_shape)
    if packing is not None and bias is not None:
        bias = np.tile(bias, columns // len(bias))[packing.updated]
    if isinstance(rows, DenseRows):
        weight = rows.weight if source is None else rows.weight[source.placed]
        weight = weight if packing is None else weight[:, packing.updated]
        kernel: Callable[..., None] = kernels.multiply_dense
        tables: tuple[Any, ...] = (private(weight),)
    else:
        packed = packed_rows(rows, source, packing, columns)
        kernel, tables = kernels.multiply_sparse, _row_arrays(packed)
    columns = columns if packing is None else len(packing.updated)
    return Prepared(kernel, tables, private(bias), columns, columns, packing, source)


def _convolution_kernel(
    layer: Synaptic, convolution: Convolution
) -> tuple[Callable[..., None], tuple[Any, ...]]:
    if not isinstance(convolution.rows, DenseRows):
        return kernels.convolve_sparse, _sparse_tables(convolution, convolution.rows)
    if layer.edge == "analog":
        return kernels.convolve_analog, _gather_tables(convolution, convolution.rows)
    return kernels.convolve_dense, _dense_tables(convolution, convolution.rows)


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

    source (T or 1, positions, channels) or packed (T, L'), current (T or 1, prepared.columns),
    v (L,), spikes (T, positions, C) or packed (T, L).
    """
    calls = current_calls(layer, prepared, source, current)
    return calls + neuron_calls(layer.neuron, current, prepared.picked, v, spikes, carry=carry)


def current_calls(layer: Synaptic, prepared: Prepared, source: Array, current: Array) -> list[Call]:
    """Bias and synapses; arguments as in `spiking_calls`."""
    values, rows, amounts = _scratch(layer, source)
    return [
        Call(kernels.start_currents, (current, prepared.bias)),
        Call(prepared.kernel, (values, *prepared.tables, rows, amounts, current)),
    ]


def neuron_calls(
    neuron: NeuronEquation,
    current: Array,
    picked: Array | None,
    v: Array,
    spikes: Array,
    *,
    carry: bool,
) -> list[Call]:
    """Neurons on their currents (T or 1, n); picked: the live ones' places, None: all n."""
    calls: list[Call] = []
    arriving = current
    if picked is not None:
        arriving = aligned((len(current), len(v)), np.float32)
        calls.append(Call(kernels.pick, (current, picked, arriving)))
    fired = spikes.reshape(len(spikes), len(v))
    return [*calls, Call(sweep_of(neuron), (arriving, *sweep_numbers(neuron), carry, v, fired))]


def _scratch(layer: Synaptic, source: Array) -> tuple[Array, Array, Array]:
    """The source as the kernel sees it, and room for the events it collects at once."""
    if isinstance(layer.synapses, Matrix):
        source = source.reshape(len(source), 1, source.size // len(source))
        events = source.shape[2]
    else:
        events = source.shape[2] * math.prod(layer.synapses.kernel)
    return source, np.empty(events, np.uint32), np.empty(events, np.float32)


def pool_call(layer: PoolLayer, source: Array, out: Array) -> Call:
    """Max pooling of (T, H·W, C) into (T, OH·OW, C), spikes or analog values."""
    arguments = (
        *(source, layer.in_shape[2]),
        *(layer.kernel, layer.stride, layer.padding),
        *(layer.out_shape[2], out),
    )
    return Call(
        kernels.max_pool_analog if source.dtype.kind == "f" else kernels.max_pool, arguments
    )


def merge_calls(layer: MergeLayer, sources: Sequence[Array], out: Array) -> list[Call]:
    """Maps (T or 1, positions, channels) to one, left to right."""
    add = merging.add_currents if out.dtype.kind == "f" else merging.add_events
    kernel = {"add": add, "and": merging.both, "iand": merging.first_without_second}[layer.function]
    first, *others = (source.reshape(len(source), -1) for source in sources)
    to, calls = out.reshape(len(out), -1), []
    for other in others:
        calls.append(Call(kernel, (first, other, to)))
        first = to
    return calls


def scatter_call(layer: ScatterLayer, source: Array, out: Array) -> Call:
    """Channels of (T, positions, C) into a map that is 0 everywhere else."""
    return Call(merging.scatter, (source, private(layer.index), out))


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
    by_name = {layer.name: layer for layer in layers}
    return {
        layer.name: prepare(layer, by_name.get(layer.source))
        for layer in layers
        if isinstance(layer, Synaptic)
    }
