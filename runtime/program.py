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
from soul_deploy.runtime.packing import (
    Packing,
    channel_last,
    generated_spikes,
    packed_rows,
    packing_of,
    reads_packed,
)
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
    packing   of the population, if it is packed
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


def prepare(layer: SpikingLayer, source: Layer | None = None) -> Prepared:
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
    layer: SpikingLayer, convolution: Convolution
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


@dataclass(frozen=True)
class Workspace:
    """Buffers and calls for one sample; used by one caller at a time.

    values    maps by layer name, the input included: (T, positions, channels); spikes are uint8.
              Packed populations have one only where something reads it
    packed    spikes (T, L) uint8 of packed populations, by name
    membranes by layer name: (L,) float32
    generated by layer name: the part of a map that holds generated channels, and their spikes
              (all T, positions, G); runs have them in the map already
    calls     in order
    scores    (classes,) float32, written by the last call
    """

    values: Mapping[str, Array]
    packed: Mapping[str, Array]
    membranes: Mapping[str, Array]
    generated: Mapping[str, tuple[Array, Array]]
    calls: tuple[Call, ...]
    scores: Array

    def run(self) -> None:
        """Execute all calls on what `values` holds for the input."""
        for call in self.calls:
            call.kernel(*call.arguments)

    def generate(self, step: int) -> None:
        """In a stream: let the generated channels spike as they do at `step`."""
        for place, spikes in self.generated.values():
            place[0] = spikes[step]


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
    maps = {
        network.input_name: aligned((input_steps, *channel_last(network.input_shape)), np.float32)
    }
    packed: dict[str, Array] = {}
    membranes: dict[str, Array] = {}
    generated: dict[str, tuple[Array, Array]] = {}
    calls: list[Call] = []
    read = read_as_maps(network, prepared)
    currents = aligned((_largest_current(network, prepared, input_steps, steps),), np.float32)
    for layer in network.layers:
        if isinstance(layer, PoolLayer):
            maps[layer.name] = aligned((steps, *channel_last(layer.out_shape)), np.uint8)
            calls.append(pool_call(layer, maps[layer.source], maps[layer.name]))
            continue
        ready = prepared[layer.name]
        source = maps[layer.source] if ready.source is None else packed[layer.source]
        v = membranes[layer.name] = aligned((ready.neurons,), np.float32)
        v[:] = layer.neuron.rest
        spikes = _spike_buffer(layer, ready, steps)
        (maps if ready.packing is None else packed)[layer.name] = spikes
        current = currents[: len(source) * ready.columns].reshape(len(source), ready.columns)
        calls += spiking_calls(layer, ready, source, current, v, spikes, carry=carry)
        if ready.packing is not None and layer.name in read:
            calls.append(_place_call(ready.packing, spikes, maps, layer))
            if layer.pattern is not None:
                shown = maps[layer.name][:, :, layer.current_shape[0] :]
                generated[layer.name] = shown, generated_spikes(layer)
                shown[...] = generated[layer.name][1][: len(shown)]
    scores = aligned((network.readout.classes,), np.float32)
    calls += readout_calls(network.readout, maps[network.readout.source], scores)
    return Workspace(maps, packed, membranes, generated, tuple(calls), scores)


def read_as_maps(network: EventNetwork, prepared: Mapping[str, Prepared]) -> set[str]:
    """Layers whose map is read by a convolution, a pooling, the readout, or unpacked rows."""
    readers = [
        layer.source
        for layer in network.layers
        if isinstance(layer, PoolLayer) or prepared[layer.name].source is None
    ]
    return {*readers, network.readout.source}


def _spike_buffer(layer: SpikingLayer, prepared: Prepared, steps: int) -> Array:
    """Room for the population's spikes: its map, or (T, L) if it is packed."""
    if prepared.packing is None:
        return aligned((steps, *channel_last(layer.out_shape)), np.uint8)
    return aligned((steps, prepared.neurons), np.uint8)


def _place_call(
    packing: Packing, spikes: Array, maps: dict[str, Array], layer: SpikingLayer
) -> Call:
    """Fills the map, which is 0 where no live neuron stands."""
    full = maps[layer.name] = aligned((len(spikes), *channel_last(layer.out_shape)), np.uint8)
    full[...] = 0
    return Call(kernels.place, (spikes, packing.placed, full.reshape(len(spikes), -1)))


def _largest_current(
    network: EventNetwork, prepared: Mapping[str, Prepared], input_steps: int, steps: int
) -> int:
    """Elements of the largest layer's currents; one buffer serves all layers in turn."""
    return max(
        (input_steps if layer.source == network.input_name else steps)
        * prepared[layer.name].columns
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

    source (T or 1, positions, channels) or packed (T, L'), current (T or 1, prepared.columns),
    v (L,), spikes (T, positions, C) or packed (T, L).
    """
    values, rows, amounts = _scratch(layer, source)
    calls = [
        Call(kernels.start_currents, (current, prepared.bias)),
        Call(prepared.kernel, (values, *prepared.tables, rows, amounts, current)),
    ]
    arriving = current
    if prepared.picked is not None:
        arriving = aligned((len(current), len(v)), np.float32)
        calls.append(Call(kernels.pick, (current, prepared.picked, arriving)))
    fired = spikes.reshape(len(spikes), len(v))
    numbers = sweep_numbers(layer.neuron)
    return [*calls, Call(sweep_of(layer.neuron), (arriving, *numbers, carry, v, fired))]


def _scratch(layer: SpikingLayer, source: Array) -> tuple[Array, Array, Array]:
    """The source as the kernel sees it, and room for the events it collects at once."""
    if isinstance(layer.synapses, Matrix):
        source = source.reshape(len(source), 1, source.size // len(source))
        events = source.shape[2]
    else:
        events = source.shape[2] * math.prod(layer.synapses.kernel)
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
    by_name = {layer.name: layer for layer in layers}
    return {
        layer.name: prepare(layer, by_name.get(layer.source))
        for layer in layers
        if isinstance(layer, SpikingLayer)
    }
