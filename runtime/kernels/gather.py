"""Dense rows of a convolution, gathered: each output adds the rows of the events in its window.

The events of a layer are listed once. Then each output position walks the lists under its window:
at each kernel position, for one step after the other, the sums of `vectors` vectors of output
channels stay in registers. So there is one load per addition, where rows that are scattered
(synapses.py) load and store a sum for every four, and a neuron's row that is read at one step is
near at the next. The weights of one block of output channels are used at all positions before
those of the next, so that they stay in the second cache.

Each target's sum runs in the order of synapses.py: sources by position, then by channel. A window's
positions rise with the kernel's row and column, so the sums are the same to the bit.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array, environment
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.simd import (
    BYTES,
    VECTOR,
    has_mask_registers,
    lowest_bit,
    nonzero_bits,
    sum_rows,
)

Kernel = Callable[..., None]
MOST_VECTORS, MOST_WITH_FEW = 8, 4
"""Of output channels whose sums are kept at once; with 16 registers of eight floats (AVX2)."""

SHARE_OF_CACHE, USUAL_CACHE = 0.6, 1 << 20
"""Of the second cache that the weights of a block take at most; bytes of one that is not known."""


def vectors_for(width: int, rows: int) -> int:
    """Vectors of a block, for so many output channels and rows of weights: the fewest in all, then
    in few blocks.
    """
    wanted, cache_size = -(-width // VECTOR), environment.caches().get("L2", USUAL_CACHE)
    fits = int(SHARE_OF_CACHE * cache_size) // (4 * VECTOR * rows)
    most = min(MOST_VECTORS if has_mask_registers() else MOST_WITH_FEW, max(fits, 1))
    return max(range(1, most + 1), key=lambda n: (-(-(-wanted // n) * n), n))


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
        starts: Array, rows: Array, amounts: Array, sums: Array, out: Array,
    ) -> None:  # fmt: skip
        """Currents of the output rows from bounds[0] to bounds[1], the bias included.

        values (T, H·W, C); weight (groups, blocks, kh · kw, C / groups, vectors · VECTOR), kernel
        positions in rising order of what lies under them; bias (groups, blocks, vectors · VECTOR);
        y_under int64 (OH, kh), x_under int64 (OW, kw): the input row and column under each kernel
        index, -1 outside; arriving: the input rows, of `in_columns` positions, whose events are
        listed. Scratch: starts, rows, amounts as in `list_events`; sums (T, vectors · VECTOR). out
        (T, OH·OW·C_out).
        """
        groups, blocks, _, inner, wide = weight.shape
        flat, width = weight.reshape(-1), out_channels // groups
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
                        sums[:] = bias[g, block]
                        for i in range(height):
                            for j in range(kernel_width):
                                if y_under[y, i] >= 0 and x_under[x, j] >= 0:
                                    row = base + (i * kernel_width + j) * inner
                                    at = y_under[y, i] * in_columns + x_under[x, j]
                                    at = at * groups + g
                                    for t in range(len(values)):
                                        events = starts[t, at], starts[t, at + 1]
                                        sum_rows(
                                            flat, row, rows, amounts, events[0], events[1],
                                            sums[t], vectors, graded,
                                        )  # fmt: skip
                        out[:, to : to + length] = sums[:, :length]

    return convolve
