"""Tap tables: which kernel indices join an input position to which outputs, along one axis.

Borders, strides, paddings and dilations are computed here once; the kernels only read the tables.
An entry says: kernel indices tap, tap + 1, ... (of the mirrored kernel) reach outputs out,
out + 1, ...
"""

import math
from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.runtime.format.network import ConvSynapses


@brief
@dataclass(frozen=True)
class TapTable:
    """The tap table of one axis: input position p has the entries first[p] .. first[p + 1].

    first  uint32 (positions + 1,)
    tap, out, length  int64 (entries,): first kernel index, first output index, how many
    """

    first: Array
    tap: Array
    out: Array
    length: Array


@dataclass(frozen=True)
class _TapRanges:
    """The taps of each input position of an axis, as an arithmetic progression.

    tap, out, count  int64 (positions,): the first (mirrored) kernel index, its output, how many
    tap_step, out_step  from one to the next
    """

    tap: Array
    out: Array
    count: Array
    tap_step: int
    out_step: int


def _tap_ranges(
    convolution: ConvSynapses, axis: int, outputs: tuple[int, int] | None = None
) -> _TapRanges:
    """Kernel index j joins position p to output o where p + padding = stride · o + dilation · j.

    Modulo the stride, that leaves every `stride / gcd`-th j; the outputs bound it on both sides.
    """
    lowest, end = outputs or (0, convolution.out_shape[1 + axis])
    kernel, stride = convolution.kernel[axis], convolution.stride[axis]
    dilation = convolution.dilation[axis]
    shift = np.arange(convolution.in_shape[1 + axis], dtype=np.int64) + convolution.padding[axis]
    common = math.gcd(stride, dilation)
    step = stride // common
    start = shift // common * pow(dilation // common, -1, step) % step
    least = np.maximum(0, -((stride * (end - 1) - shift) // dilation))
    most = np.minimum(kernel - 1, (shift - stride * lowest) // dilation)
    first, last = least + (start - least) % step, most - (most - start) % step
    count = np.maximum(0, (last - first) // step + 1)
    count[shift % common != 0] = 0
    count[convolution.reach[axis] :] = 0
    return _TapRanges(
        kernel - 1 - last, (shift - dilation * last) // stride, count, step, dilation // common
    )


def tap_count(convolution: ConvSynapses, axis: int, *, merge: bool) -> int:
    """How many entries `tap_table` has, computed without the table."""
    count = _tap_ranges(convolution, axis).count
    return int(np.count_nonzero(count) if merge else count.sum())


def tap_table(
    convolution: ConvSynapses, axis: int, *, merge: bool, outputs: tuple[int, int] | None = None
) -> TapTable:
    """The table of `axis` (0 rows, 1 columns); `merge` joins neighbouring taps (stride 1 only).

    outputs: (first, last) of the outputs whose taps are kept, last excluded; None: all outputs.
    """
    assert convolution.stride[axis] == 1 or not merge
    ranges = _tap_ranges(convolution, axis, outputs)
    first = np.zeros(len(ranges.count) + 1, np.uint32)
    if merge:
        met = ranges.count > 0
        np.cumsum(met, out=first[1:])
        return TapTable(first, ranges.tap[met], ranges.out[met], ranges.count[met])
    np.cumsum(ranges.count, out=first[1:])
    position, index = _each(ranges)
    tap = ranges.tap[position] + ranges.tap_step * index
    out = ranges.out[position] + ranges.out_step * index
    return TapTable(first, tap, out, np.ones(len(tap), np.int64))


def _each(ranges: _TapRanges) -> tuple[Array, Array]:
    """int64 (taps,) each: the input position of a tap, and its index among that position's taps."""
    position = np.repeat(np.arange(len(ranges.count)), ranges.count)
    before = np.cumsum(ranges.count) - ranges.count
    return position, np.arange(len(position)) - before[position]


def tap_incidence(convolution: ConvSynapses, axis: int) -> Array:
    """int64 (positions, kernel): 1 where a (mirrored) kernel index reaches an output."""
    table = np.zeros((convolution.in_shape[1 + axis], convolution.kernel[axis]), np.int64)
    ranges = _tap_ranges(convolution, axis)
    position, index = _each(ranges)
    table[position, ranges.tap[position] + ranges.tap_step * index] = 1
    return table


def gather_table(convolution: ConvSynapses) -> Array:
    """uint32 (OH·OW, groups, C / groups · kh · kw): for each output position its inputs.

    Inputs are in the order of the rows (channel, mirrored kernel row, column), as indices into the
    channel-last values; one past the last value stands for an input outside.
    """
    channels, height, width = convolution.in_shape
    rows, columns = (positions_under(convolution, axis) for axis in (0, 1))
    inside = (rows[:, None, :, None] >= 0) & (columns[None, :, None, :] >= 0)
    place = (rows[:, None, :, None] * width + columns[None, :, None, :]) * channels
    channel = np.arange(channels, dtype=np.uint32)[:, None, None]
    table = place.astype(np.uint32)[:, :, None] + channel
    np.copyto(table, np.uint32(height * width * channels), where=~inside[:, :, None])
    return table.reshape(len(rows) * len(columns), convolution.groups, -1)


def positions_under(convolution: ConvSynapses, axis: int) -> Array:
    """int64 (outputs, kernel): the input position under each mirrored kernel index, or -1."""
    index = np.arange(convolution.kernel[axis] - 1, -1, -1, dtype=np.int64)
    start = np.arange(convolution.out_shape[1 + axis], dtype=np.int64) * convolution.stride[axis]
    under = (start - convolution.padding[axis])[:, None] + convolution.dilation[axis] * index
    reach = min(convolution.reach[axis], convolution.in_shape[1 + axis])
    return np.where((under >= 0) & (under < reach), under, -1)


def taps_met(convolution: ConvSynapses, axis: int) -> Array:
    """bool (kernel,): (mirrored) kernel indices under which any input position ever lies.

    Weights of the other indices reach no output. Computed without a loop over the positions.
    """
    kernel, stride = convolution.kernel[axis], convolution.stride[axis]
    taps = convolution.dilation[axis] * np.arange(kernel - 1, -1, -1, dtype=np.int64)
    under = taps - convolution.padding[axis]  # of output 0
    output = np.maximum(-(under // stride), 0)  # the first whose position is not before the map
    inside = under + output * stride < convolution.reach[axis]
    return np.asarray(inside & (output < convolution.out_shape[1 + axis]))
