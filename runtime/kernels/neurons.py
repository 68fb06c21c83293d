"""Currents to spikes: one compiled loop per neuron equation, made from equations.py itself."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from soul_deploy.base import Array
from soul_deploy.runtime.equations import (
    CHARGE,
    FIRE,
    ChargeForm,
    FireRule,
    NeuronEquation,
    reset_hard,
    reset_soft,
)
from soul_deploy.runtime.kernels.cache import CACHE
from soul_deploy.runtime.kernels.config import FASTMATH, LANE_BLOCK, NEURON_BLOCK
from soul_deploy.runtime.kernels.simd import TRANSPOSED, transpose

NeuronUpdate = Callable[..., None]


@cache
def update_kernel(
    charge: ChargeForm, fire: FireRule, soft_reset: bool, lanes: int = 0
) -> NeuronUpdate:
    """The compiled update of one equation form; see `_make_update` for its arguments.

    lanes: of currents that stand side by side (time_vectorised.py); 0: one step after the other.
    """
    reset = reset_soft if soft_reset else reset_hard
    if lanes:
        return _make_lane_update(CHARGE[charge], FIRE[fire], reset, lanes)
    return _make_update(CHARGE[charge], FIRE[fire], reset)


def update_of(neuron: NeuronEquation, lanes: int = 0) -> NeuronUpdate:
    """The compiled update of a neuron; lanes as in `update_kernel`."""
    return update_kernel(neuron.charge, neuron.fire, neuron.v_reset is None, lanes)


def update_constants(
    neuron: NeuronEquation,
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """(constant, threshold, rest, reset target) as float32, in the order the update takes them."""
    return (
        np.float32(neuron.constant),
        np.float32(neuron.v_threshold),
        np.float32(neuron.rest),
        np.float32(neuron.target),
    )


def _make_update(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any]
) -> NeuronUpdate:
    @njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
    def update(
        current: Array,
        constant: np.float32,
        threshold: np.float32,
        rest: np.float32,
        target: np.float32,
        carry: bool,
        v: Array,
        spikes: Array,
        begin: int,
        end: int,
    ) -> None:
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
                    h = charge(membrane[i], arriving[i], constant, rest)
                    spike = fire(h, threshold)
                    fired[i] = spike
                    membrane[i] = reset(h, np.float32(spike), target)

    return update


def _make_lane_update(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any], lanes: int
) -> NeuronUpdate:
    @njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
    def update(
        current: Array,
        constant: np.float32,
        threshold: np.float32,
        rest: np.float32,
        target: np.float32,
        carry: bool,
        v: Array,
        spikes: Array,
        begin: int,
        end: int,
        arriving: Array,
    ) -> None:
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
                    h = charge(membrane[i], arrived[i], constant, rest)
                    spike = fire(h, threshold)
                    fired[i] = spike
                    membrane[i] = reset(h, np.float32(spike), target)

    return update
