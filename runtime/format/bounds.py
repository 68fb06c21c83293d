"""How large the integers of a fixed-point network get, from its weights (docs/fixed-point.md).

Integer sums are exact in any order, and a partial sum that wraps around does no harm if the whole
sum fits. So the largest magnitude of a layer's currents says in which type they may be summed.
"""

from typing import Literal, get_args

import numpy as np

from soul_deploy.base import Array, errors
from soul_deploy.runtime.format.synapses import ConvSynapses, Synapses

Accumulator = Literal["int16", "int32"]
ACCUMULATORS: tuple[Accumulator, ...] = get_args(Accumulator)

MOST_CURRENT = (1 << 30) - 1
"""Of a current: a membrane that is added fits 32 bits with it."""

MOST_INPUT = (1 << 15) - 1
"""Of an integer of the input."""

MOST_SCORE = (1 << 31) - 1
"""Of a class's score, before it is multiplied."""


def accumulator_for(bound: int) -> Accumulator:
    """The type in which currents of at most that magnitude are summed."""
    return "int16" if bound <= np.iinfo(np.int16).max else "int32"


def current_bounds(synapses: Synapses, most: int) -> Array:
    """int64 (targets,), of shared rows (C_out,): the largest magnitude of each target's current.

    most: the largest magnitude that arrives.
    """
    sums = synapses.rows.magnitudes(synapses.blocks, synapses.row_targets)
    bounds: Array = sums * most
    if synapses.bias is None:
        return bounds
    biases: Array = np.abs(synapses.bias.astype(np.int64))
    bounds += np.tile(biases, len(bounds) // len(biases))
    return bounds


def current_bound(synapses: Synapses, most: int) -> int:
    """The largest of `current_bounds`, at least 1. Raises LimitError beyond MOST_CURRENT."""
    return require_current(max(1, int(current_bounds(synapses, most).max())))


def tap_bound(convolution: ConvSynapses, most: int) -> int:
    """The largest magnitude of sums under any one kernel position, of dense rows."""
    sizes = np.abs(convolution.rows.weight.astype(np.int16))
    by_group = sizes.reshape(convolution.groups, -1, *sizes.shape[1:])
    return int(by_group.sum(axis=1, dtype=np.int64).max(initial=0)) * most


def require_current(bound: int) -> int:
    """`bound`. Raises LimitError beyond MOST_CURRENT."""
    if bound > MOST_CURRENT:
        raise errors.LimitError(
            f"integer weights that allow currents up to {bound:,}; the limit is {MOST_CURRENT:,}"
        )
    return bound
