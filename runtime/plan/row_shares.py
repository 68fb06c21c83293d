"""What a share of a layer's outputs reads of its rows, and where rows lead."""

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.format import network as net


def arriving_rows(under: Array, outputs: tuple[int, int]) -> tuple[int, int]:
    """(first, last) of the input rows under the output rows `outputs`; under: `positions_under`,
    turned.
    """
    reached = under[:, outputs[0] : outputs[1]]
    reached = reached[reached >= 0]
    return (int(reached.min()), int(reached.max()) + 1) if reached.size else (0, 0)


def rows_of_partition(starts: Array, targets: Array, first: int, last: int) -> tuple[Array, Array]:
    """Where each row's targets from `first` to below `last` begin and end, uint32 (rows,) each.

    Targets are sorted within a row.
    """
    before = np.zeros((2, len(targets) + 1), np.uint32)
    for counted, bound in zip(before, (first, last), strict=True):
        np.cumsum(targets < bound, out=counted[1:], dtype=np.uint32)
    below = before[:, starts[1:]] - before[:, starts[:-1]]
    return starts[:-1] + below[0], starts[:-1] + below[1]


def tap_offsets(convolution: net.ConvSynapses, starts: Array) -> Array:
    """uint32 (synapses,): kernel row · pitch + kernel column · pitch of each synapse."""
    height, width = convolution.kernel
    pitch_y, pitch_x = convolution.pitches
    per_tap = np.arange(height)[:, None] * pitch_y + np.arange(width) * pitch_x
    per_row = np.tile(per_tap.reshape(-1).astype(np.uint32), convolution.in_shape[0])
    lengths = starts[1:].astype(np.int64) - starts[:-1]
    return np.repeat(per_row, lengths)
