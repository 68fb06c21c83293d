"""Kernels that walk the rows of a layer, as the synapse kernels do.

They count what recorded events pass over (definitions: docs/counting.md), and write a
convolution's shared rows out, one row for each presynaptic neuron.
"""

from collections.abc import Callable

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit


@cached_njit
def count_convolution(
    values: Array, starts: Array, targets: Array, kernel: tuple[int, int], out_width: int,
    out_channels: int, y_first: Array, y_tap: Array, y_out: Array, x_first: Array, x_tap: Array,
    x_out: Array, live: Array, touched: Array, counts: Array,
) -> None:  # fmt: skip
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


@cached_njit
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


def _make_rows(written: bool) -> Callable[..., None]:
    @cached_njit
    def write_rows(
        starts: Array, targets: Array, weight: Array, kernel: tuple[int, int], out_width: int,
        out_channels: int, y_first: Array, y_tap: Array, y_out: Array, x_first: Array, x_tap: Array,
        x_out: Array, source_live: Array, live: Array, lengths: Array, out_targets: Array,
        out_weight: Array,
    ) -> None:  # fmt: skip
        """Synapses from each live input onto live targets, row after row, targets rising.

        Rows and tap tables as in `count_convolution`; source_live (n_in,), live (n_out,) bool, all
        channel-last. lengths int64 (n_in,): how many leave each input. out_targets, out_weight: the
        synapses.
        """
        columns, at = len(x_first) - 1, 0
        channels = len(source_live) // ((len(y_first) - 1) * columns)
        for j in range(len(source_live)):
            lengths[j] = -at
            if source_live[j]:
                position, c = j // channels, j % channels
                y, x = position // columns, position % columns
                for a in range(y_first[y], y_first[y + 1]):
                    for b in range(x_first[x], x_first[x + 1]):
                        row = (c * kernel[0] + y_tap[a]) * kernel[1] + x_tap[b]
                        base = (y_out[a] * out_width + x_out[b]) * out_channels
                        for k in range(starts[row], starts[row + 1]):
                            if written and live[base + targets[k]]:
                                out_targets[at] = base + targets[k]
                                out_weight[at] = weight[k]
                            at += live[base + targets[k]]
            lengths[j] += at

    return write_rows


count_row_synapses, fill_rows = _make_rows(False), _make_rows(True)
"""write_rows(…): the synapses are counted only, and written."""
