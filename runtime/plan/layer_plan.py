"""From layers to kernels: which kernel runs, and the tables it follows.

Preparation copies a layer's rows into private memory; this is shared and never written again. A
layer's calls (stages.py) take the tables of their part of the layer from here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.base.brief import brief
from soul_deploy.base.dispatch import operation_table
from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import (
    Convolution,
    DenseRows,
    EdgeKind,
    EventNetwork,
    Layer,
    Matrix,
    Rows,
    Shape,
    SparseRows,
    Synapses,
    Synaptic,
)
from soul_deploy.runtime.format.tap_tables import axis_runs, gather_table
from soul_deploy.runtime.kernels import synapses as kernels
from soul_deploy.runtime.kernels.time_vectorised import lanes_for
from soul_deploy.runtime.plan.layout import (
    Packing,
    packed_rows,
    packing_of,
    reads_packed,
    silenced_of,
)
from soul_deploy.runtime.plan.partition import Part

ALIGNMENT = 64
LANED = (kernels.convolve_sparse, kernels.multiply_sparse)
"""Kernels with a form that does all steps at once."""

NOTHING = np.zeros(0, np.float32)


@brief
@dataclass(frozen=True)
class Prepared:
    """A projection ready to run: kernel(values, *tables, *scratch, out) adds its synapses.

    arrays    private copies of the rows: (weight,), or (starts, targets, weight) of a convolution,
              or (starts, bases, targets, weight) of a matrix (`based_rows`); a dense analog
              convolution also has its gather table
    bias      (m,) float32 that repeats over the columns of the currents, or empty
    columns   of the currents that the kernel leaves: the current's neurons, or the packed ones
    unit      columns that stay together: parts of the layer are made of these
    neurons   that are updated
    packing   of the population, if there is one and it is packed
    source    packing of the source, if the kernel takes that source's spikes packed
    silenced  neurons that are updated with the others, but whose spikes are taken out; None: none
    """

    synapses: Synapses
    kernel: Callable[..., None]
    arrays: tuple[Array, ...]
    bias: Array
    columns: int
    unit: int
    neurons: int
    packing: Packing | None = None
    source: Packing | None = None
    silenced: Array | None = None

    @property
    def picked(self) -> Array | None:
        """Which currents to take over before the neurons, if not all of them."""
        return (
            None if self.packing is None or self.columns == self.neurons else self.packing.updated
        )

    def lanes(self, steps: int) -> int:
        """Lanes over time that the synapses run on for so many different steps; 0: none."""
        return lanes_for(steps) if self.kernel in LANED else 0

    def bounds(self, part: Part) -> tuple[int, int]:
        """(first, last) of the columns of the currents that belong to a part."""
        first, last = part.of(self.columns // self.unit)
        return first * self.unit, last * self.unit

    def bias_of(self, part: Part) -> Array:
        """What repeats over the columns of a part."""
        first, last = self.bounds(part)
        return self.bias[first:last] if len(self.bias) == self.columns else self.bias


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
    """Copy the rows of a layer's projection.

    source: the layer it reads; None for the input.
    """
    return prepare_synapses(layer.synapses, layer, source)


@operation_table(Synapses)
def prepare_synapses(synapses: Synapses, layer: Synaptic, source: Layer | None) -> Prepared:
    """As `prepare`, of the layer's synapses."""
    raise prepare_synapses.unknown(synapses)


@prepare_synapses.on(Convolution)
def _(convolution: Convolution, layer: Synaptic, source: Layer | None) -> Prepared:
    packing = packing_of(layer)
    kernel, arrays = convolution_kernel(convolution.rows, convolution, layer.edge)
    columns = math.prod(layer.current_shape)
    unit = columns // convolution.out_shape[1]
    neurons = columns if packing is None else len(packing.updated)
    return Prepared(
        convolution, kernel, arrays, private(convolution.bias), columns, unit, neurons, packing,
        silenced=silenced_of(layer),
    )  # fmt: skip


@prepare_synapses.on(Matrix)
def _(matrix: Matrix, layer: Synaptic, source: Layer | None) -> Prepared:
    """Rows and columns of live neurons only."""
    packing = packing_of(layer)
    read = packing_of(source) if source is not None and reads_packed(layer, source) else None
    bias, columns = matrix.bias, math.prod(matrix.out_shape)
    if packing is not None and bias is not None:
        bias = np.tile(bias, columns // len(bias))[packing.updated]
    kernel, arrays = matrix_kernel(matrix.rows, read, packing, columns)
    columns = columns if packing is None else len(packing.updated)
    unit = len(bias) if bias is not None and 0 < len(bias) < columns else 1
    return Prepared(matrix, kernel, arrays, private(bias), columns, unit, columns, packing, read)


Kernel = tuple[Callable[..., None], tuple[Array, ...]]
"""A kernel, and its `arrays` in Prepared."""


@operation_table(Rows)
def matrix_kernel(
    rows: Rows, source: Packing | None, target: Packing | None, columns: int
) -> Kernel:
    """The kernel of a matrix and its rows, of live neurons on sides that are packed."""
    raise matrix_kernel.unknown(rows)


@matrix_kernel.on(DenseRows)
def _(rows: DenseRows, source: Packing | None, target: Packing | None, columns: int) -> Kernel:
    weight = rows.weight if source is None else rows.weight[source.placed]
    weight = weight if target is None else weight[:, target.updated]
    return kernels.multiply_dense, (private(weight),)


@matrix_kernel.on(SparseRows)
def _(rows: SparseRows, source: Packing | None, target: Packing | None, columns: int) -> Kernel:
    return kernels.multiply_sparse, based_rows(packed_rows(rows, source, target, columns))


@operation_table(Rows)
def convolution_kernel(rows: Rows, convolution: Convolution, edge: EdgeKind) -> Kernel:
    """The kernel of a convolution and its rows."""
    raise convolution_kernel.unknown(rows)


@convolution_kernel.on(SparseRows)
def _(rows: SparseRows, convolution: Convolution, edge: EdgeKind) -> Kernel:
    starts, targets, weight = (private(array) for array in rows.arrays)
    if convolution.stride == (1, 1):
        targets += _tap_offsets(convolution, starts)
    return kernels.convolve_sparse, (starts, targets, weight)


@convolution_kernel.on(DenseRows)
def _(rows: DenseRows, convolution: Convolution, edge: EdgeKind) -> Kernel:
    if edge == "analog":
        by_group = rows.weight.reshape(convolution.groups, -1, rows.weight.shape[-1])
        return kernels.convolve_analog, (private(by_group), private(gather_table(convolution)))
    return kernels.convolve_dense, (private(rows.weight),)


def based_rows(rows: SparseRows) -> tuple[Array, Array, Array, Array]:
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
        return private(starts), np.zeros_like(bases), private(targets), private(rows.weight)
    near = (targets - np.repeat(bases, np.diff(starts))).astype(np.uint16)
    return private(starts), bases, private(near), private(rows.weight)


def tables_of(prepared: Prepared, part: Part) -> tuple[Any, ...]:
    """Arguments of the kernel between the values and the scratch, for one part of the layer."""
    return synapse_tables(prepared.synapses, prepared, part)


@operation_table(Synapses)
def synapse_tables(synapses: Synapses, prepared: Prepared, part: Part) -> tuple[Any, ...]:
    """As `tables_of`, of the layer's synapses."""
    raise synapse_tables.unknown(synapses)


@synapse_tables.on(Matrix)
def _(matrix: Matrix, prepared: Prepared, part: Part) -> tuple[Any, ...]:
    first, last = prepared.bounds(part)
    if prepared.kernel is kernels.multiply_dense:
        return *prepared.arrays, first, last
    starts, bases, targets, weight = prepared.arrays
    if part.count == 1:
        return starts[:-1], starts[1:], bases, targets, weight
    absolute = np.repeat(bases, np.diff(starts)) + targets
    return *part_of_rows(starts, absolute, first, last), bases, targets, weight


@synapse_tables.on(Convolution)
def _(convolution: Convolution, prepared: Prepared, part: Part) -> tuple[Any, ...]:
    rows = part.of(convolution.out_shape[1])
    channels, _, columns = convolution.out_shape
    if prepared.kernel is kernels.convolve_analog:
        weight, sources = prepared.arrays
        return weight, convolution.groups, sources, rows[0] * columns, rows[1] * columns
    if prepared.kernel is kernels.convolve_dense:
        contiguous = (
            convolution.stride[1] == 1 and convolution.dilation[1] == 1 and convolution.groups == 1
        )
        y = axis_runs(convolution, 0, merge=False, outputs=rows)
        x = axis_runs(convolution, 1, merge=contiguous)
        geometry = (convolution.groups, columns, channels)
        return *prepared.arrays, *geometry, y.first, y.tap, y.out, x.first, x.tap, x.out, x.length
    merge = convolution.stride == (1, 1)
    y = axis_runs(convolution, 0, merge=merge, outputs=rows)
    x = axis_runs(convolution, 1, merge=merge)
    runs = ((y.first, y.tap, y.out, y.length), (x.first, x.tap, x.out, x.length))
    pitches = convolution.pitches if merge else (0, 0)
    return *prepared.arrays, convolution.kernel, columns, channels, pitches, *runs


def part_of_rows(starts: Array, targets: Array, first: int, last: int) -> tuple[Array, Array]:
    """Where each row's targets from `first` to below `last` begin and end, uint32 (rows,) each.

    Targets are sorted within a row.
    """
    before = np.zeros((2, len(targets) + 1), np.uint32)
    for counted, bound in zip(before, (first, last), strict=True):
        np.cumsum(targets < bound, out=counted[1:], dtype=np.uint32)
    below = before[:, starts[1:]] - before[:, starts[:-1]]
    return starts[:-1] + below[0], starts[:-1] + below[1]


def _tap_offsets(convolution: Convolution, starts: Array) -> Array:
    """uint32 (synapses,): kernel row · pitch + kernel column · pitch of each synapse."""
    height, width = convolution.kernel
    pitch_y, pitch_x = convolution.pitches
    per_tap = np.arange(height)[:, None] * pitch_y + np.arange(width) * pitch_x
    per_row = np.tile(per_tap.reshape(-1).astype(np.uint32), convolution.in_shape[0])
    lengths = starts[1:].astype(np.int64) - starts[:-1]
    return np.repeat(per_row, lengths)


def prepare_all(network: EventNetwork) -> dict[str, Prepared]:
    """`prepare` for every layer with synapses, by name."""
    return {
        layer.name: prepare(layer, network.by_name.get(layer.source)) for layer in network.projected
    }
