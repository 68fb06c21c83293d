"""Currents to spikes: one compiled loop per neuron equation, made from equations.py itself."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from soul_deploy.runtime.config import BLOCK, FASTMATH
from soul_deploy.runtime.equations import (
    CHARGE,
    FIRE,
    ChargeForm,
    FireRule,
    NeuronEquation,
    reset_hard,
    reset_soft,
)
from soul_deploy.runtime.files import Array

Sweep = Callable[..., None]


@cache
def sweep_kernel(charge: ChargeForm, fire: FireRule, soft_reset: bool) -> Sweep:
    """The compiled sweep of one equation form; see `_make_sweep` for its arguments."""
    return _make_sweep(CHARGE[charge], FIRE[fire], reset_soft if soft_reset else reset_hard)


def sweep_of(neuron: NeuronEquation) -> Sweep:
    """The compiled sweep of a neuron."""
    return sweep_kernel(neuron.charge, neuron.fire, neuron.v_reset is None)


def sweep_numbers(neuron: NeuronEquation) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """(constant, threshold, rest, reset target) as float32, in the order the sweep takes them."""
    target = neuron.v_threshold if neuron.v_reset is None else neuron.v_reset
    return (
        np.float32(neuron.constant),
        np.float32(neuron.v_threshold),
        np.float32(neuron.rest),
        np.float32(target),
    )


def _make_sweep(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any]
) -> Sweep:
    @njit(cache=True, nogil=True, fastmath=FASTMATH)
    def sweep(
        current: Array,
        constant: np.float32,
        threshold: np.float32,
        rest: np.float32,
        target: np.float32,
        carry: bool,
        v: Array,
        spikes: Array,
    ) -> None:
        """Charge, fire and reset all neurons for all steps.

        current (T, n) or (1, n), the same at every step; v (n,) is the membrane potential, kept
        from before if `carry`, otherwise started at `rest`; spikes (T, n) uint8.
        """
        steps, neurons = spikes.shape
        repeated = current.shape[0] == 1
        for first in range(0, neurons, BLOCK):
            last = min(first + BLOCK, neurons)
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

    return sweep
