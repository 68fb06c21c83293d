"""Which kernel positions an input position meets, along one axis, as tables.

Everything about borders, strides, paddings and dilations is decided here once; the kernels only
follow runs. A run says: kernel indices tap, tap + 1, ... (of the mirrored kernel) reach outputs
out, out + step, ...
"""

from dataclasses import dataclass

import numpy as np

from soul_deploy.runtime.eventnet import Convolution
from soul_deploy.runtime.files import Array


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


def axis_runs(
    convolution: Convolution, axis: int, *, merge: bool, outputs: tuple[int, int] | None = None
) -> AxisRuns:
    """Runs along `axis` (0 rows, 1 columns); `merge` joins neighbours (only for stride 1).

    outputs: keep those that reach outputs from the first to below the second; None: all.
    """
    lowest, end = outputs or (0, convolution.out_shape[1 + axis])
    size, stride = convolution.in_shape[1 + axis], convolution.stride[axis]
    assert stride == 1 or not merge
    first, runs = [0], list[tuple[int, int, int]]()
    for position in range(size):
        taps = [pair for pair in _taps(convolution, axis, position) if lowest <= pair[1] < end]
        if merge and taps:
            runs.append((*taps[0], len(taps)))
        else:
            runs.extend((tap, out, 1) for tap, out in taps)
        first.append(len(runs))
    table = np.array(runs, np.int64).reshape(-1, 3)
    tap, out, length = (np.ascontiguousarray(table[:, k]) for k in range(3))
    return AxisRuns(np.array(first, np.uint32), tap, out, length)


def _taps(convolution: Convolution, axis: int, position: int) -> list[tuple[int, int]]:
    """Pairs (mirrored kernel index, output index) that input `position` contributes to."""
    if position >= convolution.reach[axis]:
        return []
    kernel, out_size = convolution.kernel[axis], convolution.out_shape[1 + axis]
    stride, dilation = convolution.stride[axis], convolution.dilation[axis]
    pairs = []
    for tap in range(kernel):
        offset = position + convolution.padding[axis] - dilation * (kernel - 1 - tap)
        if offset >= 0 and offset % stride == 0 and offset // stride < out_size:
            pairs.append((tap, offset // stride))
    return pairs


def tap_table(convolution: Convolution, axis: int) -> Array:
    """int64 (positions, kernel): 1 where an input position meets a (mirrored) kernel index."""
    table = np.zeros((convolution.in_shape[1 + axis], convolution.kernel[axis]), np.int64)
    for position in range(len(table)):
        for tap, _ in _taps(convolution, axis, position):
            table[position, tap] = 1
    return table


def gather_table(convolution: Convolution) -> Array:
    """uint32 (OH·OW, groups, C / groups · kh · kw): for each output position its inputs.

    Inputs are in the order of the rows (channel, mirrored kernel row, column), as indices into the
    channel-last values; one past the last value stands for an input outside.
    """
    channels, height, width = convolution.in_shape
    rows, columns = (_positions(convolution, axis) for axis in (0, 1))
    inside = (rows[:, None, :, None] >= 0) & (columns[None, :, None, :] >= 0)
    position = rows[:, None, :, None] * width + columns[None, :, None, :]
    table = position[:, :, None] * channels + np.arange(channels)[:, None, None]
    table = np.where(inside[:, :, None], table, height * width * channels)
    return table.reshape(len(rows) * len(columns), convolution.groups, -1).astype(np.uint32)


def _positions(convolution: Convolution, axis: int) -> Array:
    """int64 (outputs, kernel): the input position under each mirrored kernel index, or -1."""
    table = np.full((convolution.out_shape[1 + axis], convolution.kernel[axis]), -1, np.int64)
    for position in range(convolution.in_shape[1 + axis]):
        for tap, out in _taps(convolution, axis, position):
            table[out, tap] = position
    return table


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
