"""Currents to spikes: one compiled loop per neuron equation, made from equations.py itself."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime import equations
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.quotients import without_division
from soul_deploy.runtime.kernels.simd import TRANSPOSED, transpose

NeuronUpdate = Callable[..., None]

NEURON_BLOCK = 1024
"""Neurons that a neuron update carries through all steps at once; their state stays in L1."""

LANE_BLOCK = 256
"""As NEURON_BLOCK, for currents whose steps stand side by side and are transposed first."""


@cache
def update_kernel(
    charge: equations.ChargeForm, fire: equations.FireRule, soft_reset: bool, lanes: int
) -> NeuronUpdate:
    """The compiled update of one equation form; see `_make_update` for its arguments.

    lanes: of currents that stand side by side (time_vectorised.py); 0: one step after the other.
    """
    reset = equations.reset_soft if soft_reset else equations.reset_hard
    parts = equations.CHARGE[charge], equations.FIRE[fire], reset
    return _make_lane_update(*parts, lanes) if lanes else _make_update(*parts)


def update_of(neuron: equations.NeuronEquation, lanes: int = 0) -> NeuronUpdate:
    """The compiled update of a neuron; lanes as in `update_kernel`."""
    return update_kernel(*form_of(neuron), lanes)


def form_of(
    neuron: equations.NeuronEquation,
) -> tuple[equations.ChargeForm, equations.FireRule, bool]:
    """The form that kernels are made for: charge, fire, and whether the reset is soft."""
    running = without_division(neuron)
    return running.charge, running.fire, running.v_reset is None


def update_constants(neuron: equations.NeuronEquation) -> tuple[np.float32, ...]:
    """(constant, threshold, rest, reset target) as float32, in the order the update takes them."""
    running = without_division(neuron)
    numbers = running.constant, running.v_threshold, running.rest, running.target
    return tuple(map(np.float32, numbers))


def _make_update(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any]
) -> NeuronUpdate:
    @cached_njit
    def update(
        current: Array, constant: np.float32, threshold: np.float32, rest: np.float32,
        target: np.float32, carry: bool, v: Array, spikes: Array, begin: int, end: int,
    ) -> None:  # fmt: skip
        """Charge, fire and reset the neurons from `begin` to `end` for all steps.

        current (T, n) or (1, n), the same at every step; v (n,) is the membrane potential, kept
        from before if `carry`, otherwise started at `rest`; spikes (T, n) uint8.
        """
        steps = len(spikes)
        repeated = current.shape[0] == 1
        for first in range(begin, end, NEURON_BLOCK):
            last = min(first + NEURON_BLOCK, end)
            membrane = v[first:last]
            if not carry:
                membrane[:] = rest
            for t in range(steps):
                arriving = current[0 if repeated else t, first:last]
                fired = spikes[t, first:last]
                for i in range(last - first):
                    h = charge(membrane[i], arriving[i], constant, rest, threshold)
                    spike = fire(h, threshold)
                    fired[i] = spike
                    membrane[i] = reset(h, np.float32(spike), target)

    return update


def _make_lane_update(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any], lanes: int
) -> NeuronUpdate:
    @cached_njit
    def update(
        current: Array, constant: np.float32, threshold: np.float32, rest: np.float32,
        target: np.float32, carry: bool, v: Array, spikes: Array, begin: int, end: int,
        arriving: Array,
    ) -> None:  # fmt: skip
        """As the other update, for current (n, lanes).

        arriving: scratch (lanes, LANE_BLOCK), where the currents of a block of
        neurons are transposed: row t holds step t.
        """
        for first in range(begin, end, LANE_BLOCK):
            size = min(LANE_BLOCK, end - first)
            whole = size - size % TRANSPOSED
            for i in range(0, whole, TRANSPOSED):
                transpose(current, first + i, arriving, i, lanes)
            for i in range(whole, size):
                for t in range(lanes):
                    arriving[t, i] = current[first + i, t]
            membrane = v[first : first + size]
            if not carry:
                membrane[:] = rest
            for t in range(len(spikes)):
                arrived, fired = arriving[t], spikes[t, first : first + size]
                for i in range(size):
                    h = charge(membrane[i], arrived[i], constant, rest, threshold)
                    spike = fire(h, threshold)
                    fired[i] = spike
                    membrane[i] = reset(h, np.float32(spike), target)

    return update
