"""Neurons between discrete steps and NIR's differential equations, by forward Euler.

NIR: tau · dv/dt = (v_leak - v) + r · x, a spike where v > v_threshold, then v = v_reset. One step
of dt gives v + dt/tau · (v_leak - v + r · x): a LIF of tau/dt steps whose input is divided by tau
(`decay_input`) for r = 1 and is not for r = tau/dt. NIR's IF, without leak, is v + dt · r · x.

Tools write neurons that reset by subtraction in the same way, without a word. Those whose threshold
is taken off a step after the spike, once the membrane has decayed (snnTorch's Leaky: v · b + x -
s · threshold, b = 1 - dt/tau, s the last spike) are neurons whose spike takes off threshold / b.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.ir import NeuronSpec
from soul_deploy.runtime.equations import ChargeForm, FireRule, NeuronEquation

TOLERANCE = 1e-6  # relative; other tools write float32
ResetRule = Literal["zero", "subtract", "subtract_at_once"]
"""What a spike does: the membrane is set to v_reset (zero); the threshold is taken off, in the next
step after the decay (subtract, as snnTorch does it) or in the same step (subtract_at_once)."""
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
        return all(close(a, b) for a, b in zip(mine, theirs, strict=True))


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


def from_nir(
    name: str, neuron: NirNeuron, dt: float, fire: FireRule, reset: ResetRule = "zero"
) -> tuple[NeuronSpec, float]:
    """The neuron and the factor on its input current that together are `neuron`'s Euler step.

    Raises UnsupportedGraphError, by name, for numbers that our neurons cannot have.
    """
    steps = None if neuron.tau is None else neuron.tau / dt
    if steps is not None and close(steps, 1.0):
        steps = 1.0
    numbers: dict[str, float | None] = {"v_threshold": _single(neuron.v_threshold)}
    if reset == "zero":
        numbers["v_reset"] = _hard_reset(name, neuron)
    else:
        numbers |= _soft_reset(name, neuron, steps, late=reset == "subtract")
    if steps is None:
        return _spec(name, NeuronSpec, family="if", fire=fire, **numbers), _factor(neuron.r * dt)
    divided = close(neuron.r, 1.0)
    gain = 1.0 if divided or close(neuron.r, steps) else neuron.r
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


def _hard_reset(name: str, neuron: NirNeuron) -> float:
    if not close(neuron.v_leak, neuron.v_reset):
        raise UnsupportedGraphError(
            f"{name}: v_leak {neuron.v_leak:g} and v_reset {neuron.v_reset:g} differ; supported is "
            "a membrane that decays to its reset value"
        )
    return _single(neuron.v_reset)


def _soft_reset(
    name: str, neuron: NirNeuron, steps: float | None, *, late: bool
) -> dict[str, float | None]:
    if not (close(neuron.v_leak, 0.0) and close(neuron.v_reset, 0.0)):
        raise UnsupportedGraphError(
            f"{name}: reset by subtraction with v_leak {neuron.v_leak:g} and v_reset "
            f"{neuron.v_reset:g}; supported is 0 for both"
        )
    if not late or steps is None:  # without a leak both are the same
        return {"v_reset": None}
    if steps <= 1 or close(steps, 1.0):
        raise UnsupportedGraphError(
            f"{name}: reset by subtraction a step later with tau of one step, after which nothing "
            "of the membrane is left; supported is tau of more than one step"
        )
    return {"v_reset": None, "v_subtract": _single(neuron.v_threshold * steps / (steps - 1))}


def _spec(name: str, make: type[NeuronSpec], **numbers: object) -> NeuronSpec:
    try:
        return make(**numbers)  # type: ignore[arg-type]
    except UsageError as error:
        raise UnsupportedGraphError(f"{name}: {error}") from error


def _factor(value: float) -> float:
    return 1.0 if close(value, 1.0) else value


def _single(value: float) -> float:
    """The shortest decimal that is the same float32: what every engine computes with."""
    return float(str(np.float32(value)))


def close(a: float, b: float) -> bool:
    """Whether two numbers are the same but for rounding to float32."""
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)
