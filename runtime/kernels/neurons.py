"""Currents to spikes: one compiled loop per form of neuron, made from equations.py itself."""

from collections.abc import Callable
from functools import cache

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.simd import TRANSPOSED, transpose
from soul_deploy.runtime.kernels.steps import Form, Numbers, Step, step_of

NeuronUpdate = Callable[..., None]

NEURON_BLOCK = 1024
"""Neurons that a neuron update carries through all steps at once; their state stays in L1."""

LANE_BLOCK = 256
"""As NEURON_BLOCK, for currents whose steps stand side by side and are transposed first."""


@cache
def update_kernel(form: Form, lanes: int) -> NeuronUpdate:
    """The compiled update of one form; see `_make_update` for its arguments.

    lanes: of currents that stand side by side (time_vectorised.py); 0: one step after the other.
    """
    return _make_lane_update(step_of(form), lanes) if lanes else _make_update(step_of(form))


def _make_update(functions: Step) -> NeuronUpdate:
    rest, after, own = functions

    @cached_njit
    def update(
        current: Array, numbers: Numbers, carry: bool, v: Array, spikes: Array, begin: int,
        end: int,
    ) -> None:  # fmt: skip
        """Charge, fire and reset the neurons from `begin` to `end` for all steps.

        current (T, n) or (1, n), the same at every step; numbers as `steps.numbers_of`, by neuron
        where they are wide; v (n,) is the membrane potential, kept from before if `carry`,
        otherwise started at rest; spikes (T, n) uint8.
        """
        steps = len(spikes)
        repeated = current.shape[0] == 1
        for first in range(begin, end, NEURON_BLOCK):
            last = min(first + NEURON_BLOCK, end)
            membrane = v[first:last]
            if not carry:
                membrane[:] = rest(numbers)
            for t in range(steps):
                arriving = current[0 if repeated else t, first:last]
                fired = spikes[t, first:last]
                for i in range(last - first):
                    mine = own(numbers, np.uint64(first + i))
                    fired[i], membrane[i] = after(membrane[i], arriving[i], mine)

    return update


def _make_lane_update(functions: Step, lanes: int) -> NeuronUpdate:
    rest, after, own = functions

    @cached_njit
    def update(
        current: Array, numbers: Numbers, carry: bool, v: Array, spikes: Array, begin: int,
        end: int, origin: int, arriving: Array,
    ) -> None:  # fmt: skip
        """As the other update, for current (n, lanes), whose first row is that of neuron `origin`.

        arriving: scratch (lanes, LANE_BLOCK), where the currents of a block of
        neurons are transposed: row t holds step t.
        """
        for first in range(begin, end, LANE_BLOCK):
            size = min(LANE_BLOCK, end - first)
            whole = size - size % TRANSPOSED
            for i in range(0, whole, TRANSPOSED):
                transpose(current, first - origin + i, arriving, i, lanes)
            for i in range(whole, size):
                for t in range(lanes):
                    arriving[t, i] = current[first - origin + i, t]
            membrane = v[first : first + size]
            if not carry:
                membrane[:] = rest(numbers)
            for t in range(len(spikes)):
                arrived, fired = arriving[t], spikes[t, first : first + size]
                for i in range(size):
                    mine = own(numbers, np.uint64(first + i))
                    fired[i], membrane[i] = after(membrane[i], arrived[i], mine)

    return update
