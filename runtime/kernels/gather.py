"""Dense rows of a convolution, gathered: each output adds the rows of the events in its window.

The events of a layer are listed once. Then each output position and step walks the lists under its
window, and the sums of `vectors` vectors of output channels stay in registers from the bias to the
end: one load per addition, where rows that are scattered (synapses.py) load and store a sum for
every four. The weights of one block of output channels are used at all positions before those of
the next, so that they stay in the second cache.

Each target's sum runs in the order of synapses.py: sources by position, then by channel. A window's
positions rise with the kernel's row and column, so the sums are the same to the bit.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.simd import BYTES, VECTOR, lowest_bit, nonzero_bits, sum_rows

Kernel = Callable[..., None]
MOST_VECTORS = 4
"""Of output channels whose sums are kept at once: half of the registers that AVX2 has."""


def vectors_for(width: int) -> int:
    """Vectors of a block, for so many output channels: the fewest in all, then in few blocks."""
    wanted = -(-width // VECTOR)
    return max(range(1, MOST_VECTORS + 1), key=lambda n: (-(-(-wanted // n) * n), n))


@register_jitable
def list_events(
    values: Array, first: int, last: int, groups: int, starts: Array, rows: Array, amounts: Array
) -> None:
    """List the channels that are nonzero at the positions from `first` to `last`, by step.

    values (T, positions, C) uint8. starts uint32 (T, positions · groups + 1): where the events of a
    position and group begin; rows uint32: their channels within the group; amounts: their values,
    or empty: those are not wanted.
    """
    steps, positions, channels = values.shape
    flat, inner, valued = values.reshape(-1), np.uint64(channels // groups), len(amounts) > 0
    count = np.uint64(0)
    for t in range(steps):
        for k in range(first * groups, last * groups):
            starts[t, k] = count
            begin = np.uint64(t * positions * groups + k) * inner
            whole = inner - inner % np.uint64(BYTES)
            for c in range(np.uint64(0), whole, np.uint64(BYTES)):
                bits = np.uint64(nonzero_bits(flat, begin + c))
                while bits != np.uint64(0):
                    channel = c + np.uint64(lowest_bit(bits))
                    rows[count] = channel
                    if valued:
                        amounts[count] = flat[begin + channel]
                    count += np.uint64(1)
                    bits &= bits - np.uint64(1)
            for c in range(whole, inner):
                if flat[begin + c] != 0:
                    rows[count] = c
                    if valued:
                        amounts[count] = flat[begin + c]
                    count += np.uint64(1)
        starts[t, last * groups] = count


@cache
def convolve_gathered(vectors: int, graded: bool) -> Kernel:
    """The kernel for blocks of so many vectors. graded: events have amounts other than 1."""

    @cached_njit
    def convolve(
        values: Array, weight: Array, bias: Array, out_channels: int, y_under: Array,
        x_under: Array, bounds: tuple[int, int], in_columns: int, arriving: tuple[int, int],
        starts: Array, rows: Array, amounts: Array, segments: Array, sums: Array, out: Array,
    ) -> None:  # fmt: skip
        """Currents of the output rows from bounds[0] to bounds[1], the bias included.

        values (T, H·W, C); weight (groups, blocks, kh · kw, C / groups, vectors · VECTOR), kernel
        positions in rising order of what lies under them; bias (groups, blocks, vectors · VECTOR);
        y_under int64 (OH, kh), x_under int64 (OW, kw): the input row and column under each kernel
        index, -1 outside; arriving: the input rows, of `in_columns` positions, whose events are
        listed. Scratch: starts, rows, amounts as in `list_events`; segments int64 (3, kh · kw);
        sums (vectors · VECTOR,). out (T, OH·OW·C_out).
        """
        groups, blocks, _, inner, wide = weight.shape
        flat, starting, width = weight.reshape(-1), bias.reshape(-1), out_channels // groups
        columns, height, kernel_width = len(x_under), y_under.shape[1], x_under.shape[1]
        first, last = arriving[0] * in_columns, arriving[1] * in_columns
        list_events(values, first, last, groups, starts, rows, amounts)
        for g in range(groups):
            for block in range(blocks):
                begin = g * blocks + block
                base = begin * height * kernel_width * inner
                length = min(wide, width - block * wide)
                for y in range(bounds[0], bounds[1]):
                    for x in range(columns):
                        to = (y * columns + x) * out_channels + g * width + block * wide
                        for t in range(len(values)):
                            count = 0
                            for i in range(height):
                                for j in range(kernel_width):
                                    if y_under[y, i] >= 0 and x_under[x, j] >= 0:
                                        at = y_under[y, i] * in_columns + x_under[x, j]
                                        segments[0, count] = starts[t, at * groups + g]
                                        segments[1, count] = starts[t, at * groups + g + 1]
                                        segments[2, count] = base + (i * kernel_width + j) * inner
                                        count += 1
                            if length == wide:
                                sum_rows(
                                    starting, begin, flat, segments, count, rows, amounts, out[t],
                                    to, vectors, graded,
                                )  # fmt: skip
                            else:
                                sum_rows(
                                    starting, begin, flat, segments, count, rows, amounts, sums, 0,
                                    vectors, graded,
                                )  # fmt: skip
                                for k in range(length):
                                    out[t, to + k] = sums[k]

    return convolve
