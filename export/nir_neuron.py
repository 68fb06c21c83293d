"""Neurons between discrete steps and NIR's differential equations, by forward Euler.

NIR: tau · dv/dt = (v_leak - v) + r · x, a spike where v > v_threshold, then v = v_reset. One step
of dt gives v + dt/tau · (v_leak - v + r · x): a LIF of tau/dt steps whose input is divided by tau
(`decay_input`) for r = 1 and is not for r = tau/dt. NIR's IF, without leak, is v + dt · r · x.
"""

import math
from dataclasses import dataclass

import numpy as np

from soul_deploy.graph import NeuronSpec
from soul_deploy.runtime.equations import ChargeForm, FireRule, NeuronEquation
from soul_deploy.runtime.errors import UnsupportedGraphError, UsageError

TOLERANCE = 1e-6  # relative; other tools write float32
DIVIDES: tuple[ChargeForm, ...] = ("soul_lif_decay", "decay_divide", "decay_multiply")
FACTORS: tuple[ChargeForm, ...] = ("decay_multiply", "leak_subtract_multiply")


@dataclass(frozen=True)
class NirNeuron:
    """The numbers of a NIR LIF, or of an IF where tau is None; one for all its neurons."""

    tau: float | None
    r: float
    v_leak: float
    v_threshold: float
    v_reset: float

    def close_to(self, other: "NirNeuron") -> bool:
        """Whether both are the same neuron but for rounding."""
        if (self.tau is None) != (other.tau is None):
            return False
        mine, theirs = (
            (n.tau or 0.0, n.r, n.v_leak, n.v_threshold, n.v_reset) for n in (self, other)
        )
        return all(_close(a, b) for a, b in zip(mine, theirs, strict=True))


def to_nir(name: str, equation: NeuronEquation, dt: float) -> NirNeuron:
    """The NIR neuron whose Euler step of `dt` seconds is `equation`.

    Raises UnsupportedGraphError for a soft reset, which NIR does not have.
    """
    if equation.v_reset is None:
        raise UnsupportedGraphError(
            f"{name}: soft reset (the threshold is subtracted); NIR only knows reset to a value. "
            "Train with a v_reset, or export event or onnx"
        )
    reset, threshold = float(equation.v_reset), float(equation.v_threshold)
    if equation.charge == "integrate":
        return NirNeuron(None, 1 / dt, reset, threshold, reset)
    steps = _time_constant(equation)
    r = 1.0 if equation.charge in DIVIDES else steps
    return NirNeuron(steps * dt, r, reset, threshold, reset)


def _time_constant(equation: NeuronEquation) -> float:
    """tau in steps, whatever form the charge has."""
    if equation.charge == "leak_multiply":
        return 1 / (1 - float(equation.constant))
    constant = float(equation.constant)
    return 1 / constant if equation.charge in FACTORS else constant


def from_nir(name: str, neuron: NirNeuron, dt: float, fire: FireRule) -> tuple[NeuronSpec, float]:
    """The neuron and the factor on its input current that together are `neuron`'s Euler step.

    Raises UnsupportedGraphError, by name, for numbers that our neurons cannot have.
    """
    if not _close(neuron.v_leak, neuron.v_reset):
        raise UnsupportedGraphError(
            f"{name}: v_leak {neuron.v_leak:g} and v_reset {neuron.v_reset:g} differ; supported is "
            "a membrane that decays to its reset value"
        )
    numbers = {"v_threshold": _single(neuron.v_threshold), "v_reset": _single(neuron.v_reset)}
    if neuron.tau is None:
        return _spec(name, NeuronSpec, family="if", fire=fire, **numbers), _factor(neuron.r * dt)
    steps = neuron.tau / dt
    divided = _close(neuron.r, 1.0)
    gain = 1.0 if divided or _close(neuron.r, steps) else neuron.r
    spec = _spec(
        name,
        NeuronSpec,
        family="lif",
        tau=_single(steps),
        decay_input=divided or gain != 1.0,
        fire=fire,
        form="spikingjelly",
        **numbers,
    )
    return spec, gain


def _spec(name: str, make: type[NeuronSpec], **numbers: object) -> NeuronSpec:
    try:
        return make(**numbers)  # type: ignore[arg-type]
    except UsageError as error:
        raise UnsupportedGraphError(f"{name}: {error}") from error


def _factor(value: float) -> float:
    return 1.0 if _close(value, 1.0) else value


def _single(value: float) -> float:
    """The shortest decimal that is the same float32: what every engine computes with."""
    return float(str(np.float32(value)))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)
