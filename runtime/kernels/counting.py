"""Kernels that count: they walk the rows of recorded events, as the synapse kernels do.

Definitions: docs/counting.md.
"""

import numpy as np
from numba import njit

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import CACHE
from soul_deploy.runtime.kernels.config import FASTMATH


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def count_convolution(
    values: Array,
    starts: Array,
    targets: Array,
    kernel: tuple[int, int],
    out_width: int,
    out_channels: int,
    y_first: Array,
    y_tap: Array,
    y_out: Array,
    x_first: Array,
    x_tap: Array,
    x_out: Array,
    live: Array,
    touched: Array,
    counts: Array,
) -> None:
    """Walk the rows of every event of one step.

    values (H·W, C); starts, targets: nonzero weights by (channel, kernel position), targets are
    output channels; tap tables with entries of length 1. live (n,) bool. touched (n,) uint8, zero
    before; counts int64 (2,): adds synapses, synapses times value.
    """
    columns, channels = len(x_first) - 1, values.shape[1]
    for position in range(values.shape[0]):
        y, x = position // columns, position % columns
        for c in range(channels):
            if values[position, c] == 0:
                continue
            for a in range(y_first[y], y_first[y + 1]):
                for b in range(x_first[x], x_first[x + 1]):
                    row = (c * kernel[0] + y_tap[a]) * kernel[1] + x_tap[b]
                    base = (y_out[a] * out_width + x_out[b]) * out_channels
                    for k in range(starts[row], starts[row + 1]):
                        if live[base + targets[k]]:
                            touched[base + targets[k]] = 1
                            counts[0] += 1
                            counts[1] += np.int64(values[position, c])


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def count_matrix(
    values: Array, starts: Array, targets: Array, live: Array, touched: Array, counts: Array
) -> None:
    """As `count_convolution` for a matrix: values (n_in,)."""
    for j in range(len(values)):
        if values[j] != 0:
            for k in range(starts[j], starts[j + 1]):
                if live[targets[k]]:
                    touched[targets[k]] = 1
                    counts[0] += 1
                    counts[1] += np.int64(values[j])
