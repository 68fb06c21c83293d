"""The explicit form of a convolution: one row per presynaptic neuron, only synapses that matter.

Shared rows are written out position by position, without a dense matrix in between: counted once,
so that the arrays have their final size, then filled. Memory is what the result takes.
"""

import math

import numpy as np

from soul_deploy.base import Array, errors
from soul_deploy.runtime.format import network, tap_tables, validate
from soul_deploy.runtime.kernels.rows import count_row_synapses, fill_rows

Tables = tuple[network.Pair, int, int, Array, Array, Array, Array, Array, Array]


def row_lengths(
    convolution: network.ConvSynapses, rows: network.SparseRows, source_live: Array, live: Array
) -> Array:
    """int64 (n_in,): synapses of each explicit row, channel-last.

    rows: the convolution's weights as compressed rows. source_live, live: bool, channel-last.
    """
    lengths = np.empty(math.prod(convolution.in_shape), np.int64)
    starts, targets = rows.starts.astype(np.int64), rows.targets.astype(np.int64)
    count_row_synapses(starts, targets, *_tables(convolution), source_live, live, lengths)
    return lengths


def explicit_form(
    convolution: network.ConvSynapses, rows: network.SparseRows, source_live: Array, live: Array
) -> network.MatrixSynapses:
    """The convolution as a matrix of compressed rows; as `row_lengths`.

    Raises LimitError for more synapses than row starts can count.
    """
    lengths = row_lengths(convolution, rows, source_live, live)
    total = int(lengths.sum())
    if total > validate.MAX_SYNAPSES:
        raise errors.LimitError(
            f"{total} explicit synapses; the limit is {validate.MAX_SYNAPSES}. Use implicit rows"
        )
    starts = np.zeros(len(lengths) + 1, np.uint32)
    starts[1:] = np.cumsum(lengths)
    targets, weight = np.empty(total, np.uint32), np.empty(total, np.float32)
    first, to = rows.starts.astype(np.int64), rows.targets.astype(np.int64)
    tables = _tables(convolution)
    fill_rows(first, to, rows.weight, *tables, source_live, live, targets, weight)
    return network.MatrixSynapses(
        convolution.in_shape,
        convolution.out_shape,
        network.SparseRows(starts, targets, weight),
        convolution.bias,
    )


def _tables(convolution: network.ConvSynapses) -> Tables:
    y, x = (tap_tables.tap_table(convolution, axis, merge=False) for axis in (0, 1))
    channels, _, width = convolution.out_shape
    first = y.first.astype(np.int64), x.first.astype(np.int64)
    kernel = convolution.kernel
    return kernel, width, channels, first[0], y.tap, y.out, first[1], x.tap, x.out
