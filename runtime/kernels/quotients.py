"""Neurons whose time constant is a power of two run without a division, which takes the processor
longer than all else that a neuron does in a step.

x / 2ᵏ and x · 2⁻ᵏ are the same number before they are rounded, so they are after it; and
(r - v) + x is x - (v - r), since rounding is the same on both sides of 0. So such a neuron runs by
the equation of its multiplying relative, to the same bits. (Of a membrane that is 0 the sign may be
another; no spike follows from it.)
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from soul_deploy.runtime.equations import ChargeForm, NeuronEquation

LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
MULTIPLYING: Mapping[ChargeForm, ChargeForm] = {
    "soul_lif_decay": "decay_multiply",
    "soul_lif": "leak_subtract_multiply",
    "decay_divide": "decay_multiply",
    "leak_subtract_divide": "leak_subtract_multiply",
}
"""The forms that divide by their constant, and those that multiply instead."""


def without_division(neuron: NeuronEquation) -> NeuronEquation:
    """The neuron that computes the same bits without dividing; `neuron` if there is none."""
    if neuron.charge not in MULTIPLYING:
        return neuron
    constant = float(np.float32(neuron.constant))
    mantissa, _ = math.frexp(constant)
    factor = 1 / constant if mantissa == 0.5 else 0.0
    if not LEAST <= factor <= MOST:
        return neuron
    return replace(neuron, charge=MULTIPLYING[neuron.charge], constant=factor)
