"""Kernels that write a convolution's shared rows out, one row for each presynaptic neuron."""

from numba import njit

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import CACHE
from soul_deploy.runtime.kernels.config import FASTMATH


@njit(cache=CACHE, fastmath=FASTMATH)
def count_row_synapses(
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
    source_live: Array,
    live: Array,
    lengths: Array,
) -> None:
    """lengths[j] int64 (n_in,): synapses from input j, if it is live, onto live targets.

    starts, targets: rows by (channel, kernel position); tap tables with entries of length 1.
    source_live (n_in,), live (n_out,) bool; all channel-last.
    """
    columns, channels = len(x_first) - 1, len(lengths) // ((len(y_first) - 1) * (len(x_first) - 1))
    for j in range(len(lengths)):
        lengths[j] = 0
        if not source_live[j]:
            continue
        position, c = j // channels, j % channels
        y, x = position // columns, position % columns
        for a in range(y_first[y], y_first[y + 1]):
            for b in range(x_first[x], x_first[x + 1]):
                row = (c * kernel[0] + y_tap[a]) * kernel[1] + x_tap[b]
                base = (y_out[a] * out_width + x_out[b]) * out_channels
                for k in range(starts[row], starts[row + 1]):
                    lengths[j] += live[base + targets[k]]


@njit(cache=CACHE, fastmath=FASTMATH)
def fill_rows(
    starts: Array,
    targets: Array,
    weight: Array,
    kernel: tuple[int, int],
    out_width: int,
    out_channels: int,
    y_first: Array,
    y_tap: Array,
    y_out: Array,
    x_first: Array,
    x_tap: Array,
    x_out: Array,
    source_live: Array,
    live: Array,
    out_targets: Array,
    out_weight: Array,
) -> None:
    """The synapses that `count_row_synapses` counted, row after row, targets rising."""
    columns, at = len(x_first) - 1, 0
    channels = len(source_live) // ((len(y_first) - 1) * (len(x_first) - 1))
    for j in range(len(source_live)):
        if not source_live[j]:
            continue
        position, c = j // channels, j % channels
        y, x = position // columns, position % columns
        for a in range(y_first[y], y_first[y + 1]):
            for b in range(x_first[x], x_first[x + 1]):
                row = (c * kernel[0] + y_tap[a]) * kernel[1] + x_tap[b]
                base = (y_out[a] * out_width + x_out[b]) * out_channels
                for k in range(starts[row], starts[row + 1]):
                    if live[base + targets[k]]:
                        out_targets[at] = base + targets[k]
                        out_weight[at] = weight[k]
                        at += 1
