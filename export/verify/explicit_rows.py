"""The static check of explicit rows: they hold all synapses of the convolution and no others.

If every row holds as many synapses as the graph's fan-out map says, all distinct, each with the
weight that the definition gives for its pair of neurons, then the rows are exactly the graph's.
"""

from collections.abc import Iterator

import numpy as np

from soul_deploy.base import Array
from soul_deploy.export.event.storage_format import channel_last_mask
from soul_deploy.lowering import fan_out, linear_operators
from soul_deploy.runtime.format.network import MatrixSynapses, Shape, SparseRows

CHUNK = 1 << 22  # synapses looked at together


def explicit_problems(
    name: str,
    synapses: MatrixSynapses,
    op: linear_operators.ConvOperator,
    before: Array | None,
    live: Array | None,
) -> Iterator[str]:
    """What differs; before, live: bool masks of the source and the targets, None: all."""
    if not isinstance(synapses.rows, SparseRows):
        yield f"{name}: stored as a dense matrix, the graph says convolution"
        return
    if (synapses.in_shape, synapses.out_shape) != (op.in_shape, op.out_shape):
        ours, theirs = (
            f"{op.in_shape} to {op.out_shape}",
            f"{synapses.in_shape} to {synapses.out_shape}",
        )
        yield f"{name}: rows lead from {theirs}, the graph says {ours}"
        return
    expected = fan_out.fanout(op, live) * (True if before is None else before)
    lengths: Array = np.diff(synapses.rows.starts.astype(np.int64))
    channels, height, width = op.in_shape
    by_source = np.moveaxis(lengths.reshape(height, width, channels), -1, 0)
    wrong = int((by_source != expected).sum())
    if wrong:
        yield f"{name}: {wrong} rows have another number of synapses than the graph says"
    differing = sum(_wrong_synapses(synapses.rows, op, live, at) for at in _chunks(synapses.rows))
    if differing:
        yield f"{name}: {differing} of {synapses.rows.synapses} synapses differ from the graph's"
    if (synapses.bias is None) != (op.bias is None) or not _equal(synapses.bias, op.bias):
        yield f"{name}: bias differs from the graph's"


def _equal(stored: Array | None, expected: Array | None) -> bool:
    return stored is None or expected is None or np.array_equal(stored, expected)


def _chunks(rows: SparseRows) -> Iterator[slice]:
    for first in range(0, rows.synapses, CHUNK):
        yield slice(first, min(first + CHUNK, rows.synapses))


def _wrong_synapses(
    rows: SparseRows, op: linear_operators.ConvOperator, live: Array | None, at: slice
) -> int:
    """Synapses whose weight is not the kernel's for their pair of neurons."""
    numbers = np.arange(at.start, at.stop)
    source = np.searchsorted(rows.starts, numbers, side="right") - 1
    target = rows.targets[at].astype(np.int64)
    c, y, x = _place(source, op.in_shape)
    o, oy, ox = _place(target, op.out_shape)
    inner, share = op.weight.shape[1], op.out_shape[0] // op.groups
    ky, fits_y = _tap(op, 0, y, oy)
    kx, fits_x = _tap(op, 1, x, ox)
    fits = fits_y & fits_x & (c // inner == o // share)
    weight = op.weight[o, c % inner, np.where(fits_y, ky, 0), np.where(fits_x, kx, 0)]
    right = fits & (weight == rows.weight[at])
    if live is not None:
        right &= channel_last_mask(live)[target]
    return int((~right).sum())


def _place(index: Array, shape: Shape) -> tuple[Array, Array, Array]:
    """Channel, row and column of channel-last indices."""
    channels, _, width = shape
    position = index // channels
    return index % channels, position // width, position % width


def _tap(
    op: linear_operators.ConvOperator, axis: int, place: Array, out: Array
) -> tuple[Array, Array]:
    """The kernel index between an input and an output position, and whether there is one."""
    offset = place - out * op.stride[axis] + op.padding[axis]
    tap = offset // op.dilation[axis]
    fits = (offset % op.dilation[axis] == 0) & (tap >= 0) & (tap < op.weight.shape[2 + axis])
    return tap, fits & (place < op.reach[axis])
