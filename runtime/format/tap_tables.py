"""Which kernel positions an input position meets, along one axis, as tables.

Everything about borders, strides, paddings and dilations is decided here once; the kernels only
follow runs. A run says: kernel indices tap, tap + 1, ... (of the mirrored kernel) reach outputs
out, out + step, ...
"""

import math
from dataclasses import dataclass

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import Convolution


@brief
@dataclass(frozen=True)
class AxisRuns:
    """Runs of one axis: input position p has runs first[p] .. first[p + 1].

    first  uint32 (positions + 1,)
    tap, out, length  int64 (runs,): first kernel index, first output index, how many
    """

    first: Array
    tap: Array
    out: Array
    length: Array


@dataclass(frozen=True)
class _Meetings:
    """What each input position of an axis meets, as an arithmetic progression.

    tap, out, count  int64 (positions,): the first (mirrored) kernel index, its output, how many
    tap_step, out_step  from one to the next
    """

    tap: Array
    out: Array
    count: Array
    tap_step: int
    out_step: int


def _meetings(
    convolution: Convolution, axis: int, outputs: tuple[int, int] | None = None
) -> _Meetings:
    """Position p meets kernel index j at output o where p + padding = stride · o + dilation · j.

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
    return _Meetings(
        kernel - 1 - last, (shift - dilation * last) // stride, count, step, dilation // common
    )


def run_count(convolution: Convolution, axis: int, *, merge: bool) -> int:
    """How many runs `axis_runs` gives; nothing of their number is made."""
    count = _meetings(convolution, axis).count
    return int(np.count_nonzero(count) if merge else count.sum())


def axis_runs(
    convolution: Convolution, axis: int, *, merge: bool, outputs: tuple[int, int] | None = None
) -> AxisRuns:
    """Runs along `axis` (0 rows, 1 columns); `merge` joins neighbours (only for stride 1).

    outputs: keep those that reach outputs from the first to below the second; None: all.
    """
    assert convolution.stride[axis] == 1 or not merge
    found = _meetings(convolution, axis, outputs)
    first = np.zeros(len(found.count) + 1, np.uint32)
    if merge:
        met = found.count > 0
        np.cumsum(met, out=first[1:])
        return AxisRuns(first, found.tap[met], found.out[met], found.count[met])
    np.cumsum(found.count, out=first[1:])
    position, index = _each(found)
    tap = found.tap[position] + found.tap_step * index
    out = found.out[position] + found.out_step * index
    return AxisRuns(first, tap, out, np.ones(len(tap), np.int64))


def _each(found: _Meetings) -> tuple[Array, Array]:
    """int64 (meetings,): the input position of each, and which one of that position it is."""
    position = np.repeat(np.arange(len(found.count)), found.count)
    before = np.cumsum(found.count) - found.count
    return position, np.arange(len(position)) - before[position]


def tap_table(convolution: Convolution, axis: int) -> Array:
    """int64 (positions, kernel): 1 where an input position meets a (mirrored) kernel index."""
    table = np.zeros((convolution.in_shape[1 + axis], convolution.kernel[axis]), np.int64)
    found = _meetings(convolution, axis)
    position, index = _each(found)
    table[position, found.tap[position] + found.tap_step * index] = 1
    return table


def gather_table(convolution: Convolution) -> Array:
    """uint32 (OH·OW, groups, C / groups · kh · kw): for each output position its inputs.

    Inputs are in the order of the rows (channel, mirrored kernel row, column), as indices into the
    channel-last values; one past the last value stands for an input outside.
    """
    channels, height, width = convolution.in_shape
    rows, columns = (_positions(convolution, axis) for axis in (0, 1))
    inside = (rows[:, None, :, None] >= 0) & (columns[None, :, None, :] >= 0)
    place = (rows[:, None, :, None] * width + columns[None, :, None, :]) * channels
    channel = np.arange(channels, dtype=np.uint32)[:, None, None]
    table = place.astype(np.uint32)[:, :, None] + channel
    np.copyto(table, np.uint32(height * width * channels), where=~inside[:, :, None])
    return table.reshape(len(rows) * len(columns), convolution.groups, -1)


def _positions(convolution: Convolution, axis: int) -> Array:
    """int64 (outputs, kernel): the input position under each mirrored kernel index, or -1."""
    index = np.arange(convolution.kernel[axis] - 1, -1, -1, dtype=np.int64)
    start = np.arange(convolution.out_shape[1 + axis], dtype=np.int64) * convolution.stride[axis]
    under = (start - convolution.padding[axis])[:, None] + convolution.dilation[axis] * index
    reach = min(convolution.reach[axis], convolution.in_shape[1 + axis])
    return np.where((under >= 0) & (under < reach), under, -1)


def taps_met(convolution: Convolution, axis: int) -> Array:
    """bool (kernel,): (mirrored) kernel indices under which any input position ever lies.

    The others hold stored weights that lead nowhere. No turn per position or index is taken.
    """
    kernel, stride = convolution.kernel[axis], convolution.stride[axis]
    taps = convolution.dilation[axis] * np.arange(kernel - 1, -1, -1, dtype=np.int64)
    under = taps - convolution.padding[axis]  # of output 0
    output = np.maximum(-(under // stride), 0)  # the first whose position is not before the map
    inside = under + output * stride < convolution.reach[axis]
    met: Array = inside & (output < convolution.out_shape[1 + axis])
    return met
