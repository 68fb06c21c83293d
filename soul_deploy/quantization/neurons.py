"""What a neuron of real numbers is in integers: its leak, its gain, its reset."""

from dataclasses import dataclass

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, errors
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.equations import (
    LEAK_AND_GAIN,
    Equation,
    FireRule,
    FixedReset,
    NeuronEquation,
)

FAMILIES = ("if", "lif", "plif", "snn_leaky")
SNN_RESETS: tuple[FixedReset, ...] = ("late", "hard", "none")
"""What snnTorch's resets are here: subtract (a step later), zero, none."""


@dataclass(frozen=True)
class RealNeuron:
    """The numbers of a neuron that becomes one of integers.

    height    the threshold above the resting value
    subtract  what a spike takes off; None where the reset takes nothing off
    """

    leak: float
    gain: float
    height: float
    fire: FireRule
    reset: FixedReset
    subtract: float | None = None


def real_neuron(node: ir.Population, equation: Equation) -> RealNeuron:
    """The numbers of a population's neurons. Raises UnsupportedGraphError, by name, for those that
    have no exact integer form."""
    family = node.neuron.family
    if family not in FAMILIES:
        raise errors.UnsupportedGraphError(
            f"{node.name}: neurons of family {family} have no exact integer form; fixed-point "
            "networks have IF, LIF, PLIF and snnTorch's Leaky"
        )
    if isinstance(equation, DynamicsEquation):
        return _snntorch(node, equation)
    assert isinstance(equation, NeuronEquation)
    leak, gain = LEAK_AND_GAIN[equation.charge](float(np.float32(equation.constant)))
    if not 0 <= leak <= 1:
        raise errors.UnsupportedGraphError(
            f"{node.name}: its membrane is multiplied by {leak:g} each step; fixed-point neurons "
            "have a leak from 0 to 1"
        )
    late = equation.charge == "leak_multiply_late"
    if late and equation.fire == "ge":
        raise errors.UnsupportedGraphError(
            f"{node.name}: it fires at its threshold, and is reset above it only; fixed-point "
            "neurons have one rule for both"
        )
    height, real = equation.v_threshold - equation.rest, (leak, gain)
    if equation.v_reset is not None:
        return RealNeuron(*real, height, equation.fire, "hard")
    if late:
        return RealNeuron(*real, height, equation.fire, "late", equation.v_threshold)
    if not equation.target:
        return RealNeuron(*real, height, equation.fire, "none")
    return RealNeuron(*real, height, equation.fire, "soft", equation.target)


def _snntorch(node: ir.Population, equation: DynamicsEquation) -> RealNeuron:
    """snnTorch's Leaky, whose constants may be learned, one for the layer."""
    settings, numbers = node.neuron.named, equation.named
    beta, threshold = numbers["beta"], numbers["threshold"]
    if np.size(beta) != 1 or np.size(threshold) != 1 or not settings["delay"]:
        raise errors.UnsupportedGraphError(
            f"{node.name}: a beta or threshold of each neuron, and reset_delay False, have no form "
            "in fixed point"
        )
    leak, height = float(np.reshape(beta, ())), float(np.reshape(threshold, ()))
    reset = SNN_RESETS[int(settings["reset"])]
    if reset == "late" and node.neuron.fire == "ge":
        raise errors.UnsupportedGraphError(
            f"{node.name}: it fires at its threshold, and is reset above it only; fixed-point "
            "neurons have one rule for both"
        )
    subtract = height if reset == "late" else None
    return RealNeuron(leak, 1.0, height, node.neuron.fire, reset, subtract)


def threshold_of(real: RealNeuron, unit: Array) -> Array:
    """int32, of the unit's shape: integers above (or at) it are those whose membranes are above
    (or at) the real threshold."""
    height = np.float64(np.float32(real.height)) / unit
    whole: Array = np.floor(height) if real.fire == "gt" else np.ceil(height)
    return np.asarray(whole, np.int32)
