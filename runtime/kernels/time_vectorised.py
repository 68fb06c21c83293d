"""Sparse synapses for all steps at once: one lane of a vector per timestep.

A presynaptic neuron that fires at any step makes one pass over its row. Its values at the steps
are one vector, the currents of a target are another, side by side in memory: (n, lanes). So a row
is read once instead of once per spike. Each lane's sum has the order of the kernels that go step
by step (synapses.py): a step without a spike adds a zero, which changes no sum.

Lanes beyond the last step hold zeros and are never read.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.simd import add_row, broadcast_store, prefetch
from soul_deploy.runtime.kernels.synapses import Taps

Kernel = Callable[..., None]

LANES_TOGETHER = 4
"""Lanes come in multiples of a 128-bit vector of float32."""

MOST_LANES = 16
"""A cache line of currents per target; with more steps, the kernels go step by step."""

SPIKE_BLOCK = 1024
"""Presynaptic neurons of a matrix of which those that fire at any step are listed at once."""

PREFETCH_ROWS = 4
"""Rows of a matrix whose cache lines are prefetched before they are needed."""


def lanes_for(steps: int) -> int:
    """Lanes for so many steps; 0 if they are better done one by one."""
    lanes = -(-steps // LANES_TOGETHER) * LANES_TOGETHER
    return lanes if steps > 1 and lanes <= MOST_LANES else 0


@register_jitable
def collect_passes(
    values: Array, position: int, first: int, last: int, seen: Array, rows: Array, amounts: Array
) -> np.int64:
    """List the neurons that fire at any step, and their values at all steps; return how many.

    values (T, positions, channels), of which `position` and the channels from `first` to `last`
    are taken. rows[e] = channel, amounts[e, t] = value; seen: scratch. All three are at least as
    long as there are channels taken.
    """
    steps, size, offset = len(values), np.uint64(last - first), np.uint32(first)
    for t in range(steps):
        arrived = values[t, position, first:last]
        if t == 0:
            for i in range(size):
                seen[i] = arrived[i]
        else:
            for i in range(size):
                seen[i] |= arrived[i]
    count = np.uint64(0)
    for i in range(size):
        rows[count] = offset + np.uint32(i)
        count = np.uint64(count + np.uint64(seen[i] != 0))
    for t in range(steps):
        arrived = values[t, position]
        for e in range(count):
            amounts[e, t] = arrived[np.uint64(rows[e])]
    return np.int64(count)


@cache
def start_lanes(lanes: int) -> Kernel:
    """Fill out (n, lanes) from `first` to `last` with the bias (m,), repeated, or with 0.

    `first` and `last` are multiples of m.
    """

    @cached_njit
    def start(out: Array, bias: Array, first: int, last: int) -> None:
        width = len(bias)
        if width == 0:
            out[first:last] = np.float32(0)
            return
        for begin in range(first, last, width):
            for k in range(width):
                broadcast_store(out, begin + k, bias[k], lanes)

    return start


@cached_njit
def gather_lanes(current: Array, index: Array, first: int, last: int, out: Array) -> None:
    """Gather the currents of live neurons: out[i] = current[index[i]], i from `first` to `last`."""
    for i in range(first, last):
        source = current[np.uint64(index[i])]
        for t in range(out.shape[1]):
            out[i, t] = source[t]


@cache
def convolve_lanes(lanes: int) -> Kernel:
    """kernels.convolve_sparse for all steps at once: out (n, lanes), amounts (events, lanes).

    rows holds valid channels and is one longer than there can be events: where the next row stands
    is looked up before a row is added, since the end of a row stops the processor looking ahead.
    """

    @cached_njit
    def convolve(
        values: Array, starts: Array, targets: Array, weight: Array, kernel: tuple[int, int],
        out_width: int, out_channels: int, pitch: tuple[int, int], y_taps: Taps, x_taps: Taps,
        seen: Array, rows: Array, amounts: Array, out: Array,
    ) -> None:  # fmt: skip
        (y_first, y_tap, y_out, y_length), (x_first, x_tap, x_out, x_length) = y_taps, x_taps
        height, columns, channels = len(y_first) - 1, len(x_first) - 1, values.shape[2]
        taps = np.uint64(kernel[0] * kernel[1])
        for y in range(height):
            if y_first[y] == y_first[y + 1]:  # most rows, of a tile
                continue
            for x in range(columns):
                if x_first[x] == x_first[x + 1]:
                    continue
                at = y * columns + x
                count = collect_passes(values, at, 0, channels, seen, rows, amounts)
                for a in range(y_first[y], y_first[y + 1]):
                    for b in range(x_first[x], x_first[x + 1]):
                        base = (y_out[a] * out_width + x_out[b]) * out_channels
                        base -= y_tap[a] * pitch[0] + x_tap[b] * pitch[1]
                        whole = x_length[b] == kernel[1]
                        pieces = 1 if whole else y_length[a]
                        length = np.uint64(y_length[a] * kernel[1] if whole else x_length[b])
                        for i in range(pieces):
                            offset = np.uint64((y_tap[a] + i) * kernel[1] + x_tap[b])
                            r = np.uint64(rows[0]) * taps + offset
                            begin, end = starts[r], starts[r + length]
                            for e in range(count):
                                r = np.uint64(rows[e + 1]) * taps + offset
                                after = starts[r], starts[r + length]
                                add_row(out, base, targets, weight, begin, end, amounts, e, lanes)
                                begin, end = after

    return convolve


@register_jitable
def prefetch_row(targets: Array, weight: Array, begin: np.uint32, lines: int) -> None:
    """Prefetch a row's cache lines, 16 weights each: as many for all rows, since an end that
    changes from row to row costs more than a line.
    """
    for k in range(lines):
        at = np.uint64(begin) + np.uint64(16 * k)
        prefetch(targets, at)
        prefetch(weight, at)


@cache
def multiply_lanes(lanes: int) -> Kernel:
    """kernels.multiply_sparse for all steps at once: out (n, lanes), amounts (events, lanes)."""

    @cached_njit
    def multiply(
        values: Array, starts: Array, ends: Array, bases: Array, targets: Array, weight: Array,
        seen: Array, rows: Array, amounts: Array, out: Array,
    ) -> None:  # fmt: skip
        size, looked, found = values.shape[2], 0, 0
        for row in range(0, size, SPIKE_BLOCK // 16):
            looked, found = looked + 1, found + int(ends[row]) - int(starts[row])
        lines = found // (16 * max(looked, 1)) + 1
        for first in range(0, size, SPIKE_BLOCK):
            last = min(first + SPIKE_BLOCK, size)
            count = collect_passes(values, 0, first, last, seen, rows, amounts)
            for e in range(count):
                if e + PREFETCH_ROWS < count:
                    j = np.uint64(rows[e + PREFETCH_ROWS])
                    prefetch_row(targets, weight, starts[j], lines)
                j = np.uint64(rows[e])
                add_row(out, bases[j], targets, weight, starts[j], ends[j], amounts, e, lanes)

    return multiply
