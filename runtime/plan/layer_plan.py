"""Layer plans: which kernel runs the synapses of a layer, and the arrays that the kernel reads.

A plan copies a layer's rows into aligned memory; all runs share the copies, none writes to them.
The regions of a layer (regions.py) take the tables of each partition from the plan.

Partitions are equal shares of a layer's outputs, each computed by one thread. Every sum of a
partition has the order that it has when one thread computes the whole layer. So the number of
partitions changes no bit, and partitions need no locks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, brief, dispatch
from soul_deploy.runtime.format import bounds
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.tap_tables import gather_table, positions_under, tap_table
from soul_deploy.runtime.kernels import bit_planes, gather, time_vectorised
from soul_deploy.runtime.kernels import synapses as kernels
from soul_deploy.runtime.kernels.simd import BYTES
from soul_deploy.runtime.plan.forms import Form, possible_forms
from soul_deploy.runtime.plan.layout import CompactLayout, compact_rows, layout_of, masked_out_index
from soul_deploy.runtime.plan.planes import PlaneRows, plane_rows
from soul_deploy.runtime.plan.row_shares import arriving_rows, rows_of_partition, tap_offsets

ALIGNMENT = 64
IN_LANES = {
    kernels.convolve_sparse: time_vectorised.convolve_lanes,
    kernels.multiply_sparse: time_vectorised.multiply_lanes,
}
"""The form of a kernel that does all steps at once."""
EMPTY, NO_INTEGERS = np.zeros(0, np.float32), np.zeros(0, np.int32)


@dataclass(frozen=True)
class Partition:
    """Share `index` of `count`."""

    index: int
    count: int

    def of(self, size: int) -> tuple[int, int]:
        """(first, last) of the share of `size` consecutive outputs, last excluded."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


def partitions_of(count: int) -> tuple[Partition, ...]:
    return tuple(Partition(i, count) for i in range(count))


@brief
@dataclass(frozen=True)
class LayerPlan:
    """The plan of a projection: kernel(values, *tables, *scratch, out) adds its synapses.

    form      how they are added
    arrays    aligned copies of the rows: (weight,), or (starts, targets, weight) of a convolution,
              or (starts, bases, targets, weight) of a matrix (`based_rows`); analog rows of a
              convolution also have their gather table, gathered ones (weight, bias) in blocks, and
              their kernel begins with the bias
    bias      (m,) that repeats over the columns of the currents, or empty
    current   type of the currents and of their sums: float32, or int16 or int32
    columns   of the currents that the kernel leaves: the current's neurons, or the packed ones
    unit      columns that stay together: parts of the layer are made of these
    neurons   that are updated
    layout    of the population, if there is one and it is packed
    source_layout packing of the source, if the kernel takes that source's spikes packed
    masked_out neurons that are updated with the others, but whose spikes are taken out; None: none
    planes    the rows of a layer on bit planes, which has no `arrays`
    """

    synapses: net.Synapses
    form: Form
    kernel: Callable[..., Any]
    arrays: tuple[Array, ...]
    bias: Array
    columns: int
    unit: int
    neurons: int
    layout: CompactLayout | None = None
    source_layout: CompactLayout | None = None
    masked_out: Array | None = None
    planes: PlaneRows | None = None
    current: npt.DTypeLike = np.float32

    @property
    def gather_index(self) -> Array | None:
        """Index of the currents to gather before the neuron update; None: all currents."""
        everything = self.layout is None or self.columns == self.neurons
        return None if self.layout is None or everything else self.layout.gather_index

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """(first, last) of the columns of the currents that belong to a partition."""
        first, last = partition.of(self.columns // self.unit)
        return first * self.unit, last * self.unit

    def bias_of(self, partition: Partition) -> Array:
        """The bias that repeats over the columns of a partition."""
        first, last = self.bounds(partition)
        return self.bias[first:last] if len(self.bias) == self.columns else self.bias


def aligned(shape: net.Shape, dtype: npt.DTypeLike) -> Array:
    """An uninitialised array whose data starts at a multiple of 64 bytes (a cache line)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def aligned_copy(array: Array | None) -> Array:
    """An aligned copy; empty float32 for None. Read-only maps are slow to pass to kernels."""
    if array is None:
        return EMPTY
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


@dispatch.operation_table(net.Synapses)
def prepare_synapses(
    synapses: net.Synapses, layer: net.Synaptic, source: net.Layer | None, form: Form
) -> LayerPlan:
    """The plan of a layer with these synapses; as `plan_layer`."""
    raise prepare_synapses.unknown(synapses)


@prepare_synapses.on(net.ConvSynapses)
def _(
    convolution: net.ConvSynapses, layer: net.Synaptic, source: net.Layer | None, form: Form
) -> LayerPlan:
    if form == "planes":
        return _plan_on_planes(layer, convolution)
    layout, graded = layout_of(layer), layer.edge != "spike"
    if form == "gather":
        kernel, arrays = gathered_rows(convolution, layer, graded=graded)
    else:
        kernel, arrays = convolution_kernel(convolution.rows, convolution, form)
    columns = math.prod(layer.current_shape)
    unit = columns // convolution.out_shape[1]
    neurons = columns if layout is None else len(layout.gather_index)
    bias, masked = _copy_of_bias(layer, convolution.bias), masked_out_index(layer)
    return LayerPlan(
        convolution, form, kernel, arrays, bias, columns, unit, neurons, layout, masked_out=masked,
        current=current_type(layer),
    )  # fmt: skip


@prepare_synapses.on(net.MatrixSynapses)
def _(
    matrix: net.MatrixSynapses, layer: net.Synaptic, source: net.Layer | None, form: Form
) -> LayerPlan:
    """Rows and columns of live neurons only: a matrix behind a compacted population reads compacted
    spikes, behind constant-pattern channels the map.
    """
    layout = layout_of(layer)
    read = None if source is None or source.pattern is not None else layout_of(source)
    bias, columns = matrix.bias, math.prod(matrix.out_shape)
    if layout is not None and bias is not None:
        bias = np.tile(bias, columns // len(bias))[layout.gather_index]
    kernel, arrays = matrix_kernel(matrix.rows, read, layout, columns)
    columns = columns if layout is None else len(layout.gather_index)
    unit = len(bias) if bias is not None and 0 < len(bias) < columns else 1
    bias = _copy_of_bias(layer, bias)
    return LayerPlan(
        matrix, form, kernel, arrays, bias, columns, unit, columns, layout, read,
        current=current_type(layer),
    )  # fmt: skip


def _copy_of_bias(layer: net.Synaptic, bias: Array | None) -> Array:
    """Of the kind of the layer's currents, empty where it has none."""
    if bias is None and layer.accumulator is not None:
        return NO_INTEGERS
    return aligned_copy(bias)


def current_type(layer: net.Synaptic) -> npt.DTypeLike:
    """In which a layer's currents are summed."""
    return np.dtype(np.float32 if layer.accumulator is None else layer.accumulator)


Kernel = tuple[Callable[..., None], tuple[Array, ...]]
"""A kernel, and its `arrays` in a LayerPlan."""


@dispatch.operation_table(net.Rows)
def matrix_kernel(
    rows: net.Rows, source: CompactLayout | None, target: CompactLayout | None, columns: int
) -> Kernel:
    """The kernel of a matrix and its rows, of live neurons on sides that are packed."""
    raise matrix_kernel.unknown(rows)


@matrix_kernel.on(net.DenseRows)
def _(
    rows: net.DenseRows, source: CompactLayout | None, target: CompactLayout | None, columns: int
) -> Kernel:
    weight = rows.weight if source is None else rows.weight[source.scatter_index]
    weight = weight if target is None else weight[:, target.gather_index]
    return kernels.multiply_dense, (aligned_copy(weight),)


@matrix_kernel.on(net.SparseRows)
def _(
    rows: net.SparseRows, source: CompactLayout | None, target: CompactLayout | None, columns: int
) -> Kernel:
    return kernels.multiply_sparse, based_rows(compact_rows(rows, source, target, columns))


@dispatch.operation_table(net.Rows)
def convolution_kernel(rows: net.Rows, convolution: net.ConvSynapses, form: Form) -> Kernel:
    """The kernel of a convolution and its rows."""
    raise convolution_kernel.unknown(rows)


@convolution_kernel.on(net.SparseRows)
def _(rows: net.SparseRows, convolution: net.ConvSynapses, form: Form) -> Kernel:
    starts, targets, weight = (aligned_copy(array) for array in rows.arrays)
    if convolution.stride == (1, 1):
        targets += tap_offsets(convolution, starts)
    return kernels.convolve_sparse, (starts, targets, weight)


@convolution_kernel.on(net.DenseRows)
def _(rows: net.DenseRows, convolution: net.ConvSynapses, form: Form) -> Kernel:
    if form == "analog":
        by_group = rows.weight.reshape(convolution.groups, -1, rows.weight.shape[-1])
        arrays = aligned_copy(by_group), aligned_copy(gather_table(convolution))
        return kernels.convolve_analog, arrays
    return kernels.convolve_dense, (aligned_copy(rows.weight),)


def gathered_rows(convolution: net.ConvSynapses, layer: net.Synaptic, *, graded: bool) -> Kernel:
    """(weight, bias) by groups and blocks of output channels, as `convolve_gathered` takes them."""
    groups, channels = convolution.groups, convolution.in_shape[0]
    width, taps = convolution.out_shape[0] // groups, math.prod(convolution.kernel)
    rows, (kind, total) = convolution.rows.weight, gathered_types(convolution, layer)
    lanes = BYTES // kind.itemsize
    vectors = gather.vectors_for(width, channels // groups, lanes)
    wide = vectors * lanes
    blocks = -(-width // wide)
    padded = np.zeros((channels, taps, blocks * wide), kind)
    padded[..., :width] = rows[:, ::-1, ::-1].reshape(channels, taps, width)
    weight = padded.reshape(groups, channels // groups, taps, blocks, wide)
    bias = np.zeros((groups, blocks * wide), total)
    if convolution.bias is not None:
        bias[:, :width] = convolution.bias.reshape(groups, width)
    arrays = weight.transpose(0, 3, 2, 1, 4), bias.reshape(groups, blocks, wide)
    kernel = gather.convolve_gathered(vectors, graded, lanes)
    return kernel, tuple(map(aligned_copy, arrays))


def gathered_types(
    convolution: net.ConvSynapses, layer: net.Synaptic
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Of weights and of their sums. Weights are int16 where the sums under each kernel position
    are, which are then added to wider ones.
    """
    if layer.accumulator is None:
        return np.dtype(np.float32), np.dtype(np.float32)
    most = bounds.tap_bound(convolution, layer.bound or 1)
    return np.dtype(bounds.accumulator_for(most)), np.dtype(layer.accumulator)


def based_rows(rows: net.SparseRows) -> tuple[Array, Array, Array, Array]:
    """(starts, bases int64 (rows,), targets, weight): targets count from their row's base.

    If no row reaches far, they take 16 bits: rows of a matrix are read from memory, and the fewer
    bytes, the faster.
    """
    starts, targets = rows.starts, rows.targets
    bases = np.zeros(len(starts) - 1, np.int64)
    filled = np.flatnonzero(starts[1:] > starts[:-1])
    bases[filled] = targets[starts[filled]]
    reach = targets[starts[filled + 1] - 1] - bases[filled]
    if int(reach.max(initial=0)) >= 1 << 16:
        bases = np.zeros_like(bases)
    else:
        targets = (targets - np.repeat(bases, np.diff(starts))).astype(np.uint16)
    return aligned_copy(starts), bases, aligned_copy(targets), aligned_copy(rows.weight)


@dispatch.operation_table(net.Synapses)
def synapse_tables(
    synapses: net.Synapses, plan: LayerPlan, partition: Partition, *, origin: bool = False
) -> tuple[Any, ...]:
    """Arguments of the kernel between the values and the scratch, for one partition.

    origin: of a convolution's compressed rows, whether outputs count from the partition's first.
    """
    raise synapse_tables.unknown(synapses)


@synapse_tables.on(net.MatrixSynapses)
def _(
    matrix: net.MatrixSynapses, plan: LayerPlan, partition: Partition, *, origin: bool = False
) -> tuple[Any, ...]:
    first, last = plan.bounds(partition)
    if plan.form == "dense":
        return *plan.arrays, first, last
    starts, bases, targets, weight = plan.arrays
    if partition.count == 1:
        return starts[:-1], starts[1:], bases, targets, weight
    absolute = np.repeat(bases, np.diff(starts)) + targets
    begins, ends = rows_of_partition(starts, absolute, first, last)
    return rows_apart(begins, ends, bases, targets, weight)


@synapse_tables.on(net.ConvSynapses)
def _(
    convolution: net.ConvSynapses, plan: LayerPlan, partition: Partition, *, origin: bool = False
) -> tuple[Any, ...]:
    rows = partition.of(convolution.out_shape[1])
    channels, _, columns = convolution.out_shape
    if plan.form == "gather":
        under = [positions_under(convolution, axis)[:, ::-1].T.copy() for axis in (0, 1)]
        arriving = arriving_rows(under[0], rows)
        return *plan.arrays, channels, *under, rows, convolution.in_shape[2], arriving
    if plan.form == "analog":
        weight, sources = plan.arrays
        return weight, convolution.groups, sources, rows[0] * columns, rows[1] * columns
    if plan.form == "dense":
        contiguous = convolution.stride[1] == convolution.dilation[1] == convolution.groups == 1
        y = tap_table(convolution, 0, merge=False, outputs=rows)
        x = tap_table(convolution, 1, merge=contiguous)
        geometry = (convolution.groups, columns, channels)
        return *plan.arrays, *geometry, y.first, y.tap, y.out, x.first, x.tap, x.out, x.length
    merge = convolution.stride == (1, 1)
    y = tap_table(convolution, 0, merge=merge, outputs=rows)
    x = tap_table(convolution, 1, merge=merge)
    y_out = y.out - rows[0] if origin else y.out
    tables = ((y.first, y.tap, y_out, y.length), (x.first, x.tap, x.out, x.length))
    pitches = convolution.pitches if merge else (0, 0)
    return *plan.arrays, convolution.kernel, columns, channels, pitches, *tables


def rows_apart(
    begins: Array, ends: Array, bases: Array, targets: Array, weight: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """(starts, ends, bases, targets, weight) of the rows from `begins` to `ends`, copied one behind
    the other: a thread that read its parts of common rows would load the lines of all others.
    """
    lengths = ends.astype(np.int64) - begins
    starts = np.zeros(len(lengths) + 1, np.uint32)
    np.cumsum(lengths, out=starts[1:])
    index = np.repeat(begins - starts[:-1].astype(np.int64), lengths) + np.arange(int(starts[-1]))
    kept = aligned_copy(targets[index]), aligned_copy(weight[index])
    return starts[:-1], starts[1:], bases, *kept


def plan_layer(layer: net.Synaptic, form: Form, source: net.Layer | None = None) -> LayerPlan:
    """The plan of a layer's projection in a form that it can have, with copies of its rows.

    source: the layer that `layer` reads; None for the network's input.
    """
    return prepare_synapses(layer.synapses, layer, source, form)


def plan_layers(network: net.EventNetwork, forms: Mapping[str, Form]) -> dict[str, LayerPlan]:
    """`plan_layer` for every layer with synapses, by name, in the `forms` of all; and for every
    feedback, which goes from event to event.
    """
    found = {
        layer.name: plan_layer(layer, forms[layer.name], network.by_name.get(layer.source))
        for layer in network.projected
    }
    for back in network.feedbacks:
        found[back.name] = plan_layer(back, possible_forms(back)[0], network.by_name[back.source])
    return found


def _plan_on_planes(layer: net.Synaptic, convolution: net.ConvSynapses) -> LayerPlan:
    """It has no arrays but its rows on planes; tables and kernels depend on the steps."""
    assert isinstance(layer, net.SpikingLayer)
    rows, neurons = plane_rows(layer, convolution), math.prod(layer.current_shape)
    unit, kernel = neurons // convolution.out_shape[1], bit_planes.convolve_kernel
    return LayerPlan(convolution, "planes", kernel, (), EMPTY, neurons, unit, neurons, planes=rows)
