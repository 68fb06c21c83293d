"""Neurons between discrete steps and NIR's differential equations, by forward Euler.

NIR: tau · dv/dt = (v_leak - v) + r · x, a spike where v > v_threshold, then v = v_reset. One step
of dt gives v + dt/tau · (v_leak - v + r · x): a LIF of tau/dt steps whose input is divided by tau
(`decay_input`) for r = 1 and is not for r = tau/dt. NIR's IF, without leak, is v + dt · r · x.

Tools write neurons that reset by subtraction in the same way, without a word. Those whose threshold
is taken off a step after the spike, once the membrane has decayed (snnTorch's Leaky: v · b + x -
s · threshold, b = 1 - dt/tau, s the last spike) have a form of their own, snnTorch's to the last
bit (`NeuronSpec.form`). Where such neurons should fire at their threshold too, which snnTorch's do
not, a spike takes off threshold / b.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy.base import dispatch
from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.export.nir.package import DEFAULT_DT
from soul_deploy.ir import NeuronSpec
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import (
    ChargeForm,
    Equation,
    FireRule,
    FixedEquation,
    NeuronEquation,
)

TOLERANCE = 1e-6  # relative; other tools write float32
ResetRule = Literal["zero", "subtract", "subtract_at_once"]
"""What a spike does: the membrane is set to v_reset (zero); the threshold is taken off, in the next
step after the decay (subtract, as snnTorch does it) or in the same step (subtract_at_once)."""
DIVIDES: tuple[ChargeForm, ...] = ("soul_lif_decay", "decay_divide", "decay_multiply")
FACTORS: tuple[ChargeForm, ...] = ("decay_multiply", "leak_subtract_multiply")
RULES: Mapping[FireRule, str] = {"gt": "v > v_threshold", "ge": "v >= v_threshold"}  # NIR's: gt
DIGITS = 9  # of a decimal that is one float32
LARGEST_SHRINKAGE = 100.0  # how far below its weights a step's input may be with an assumed dt


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
        mine, theirs = astuple(self), astuple(other)
        return all(close(a or 0.0, b or 0.0) for a, b in zip(mine, theirs, strict=True))


@dispatch.operation_table(Equation)
def to_nir(equation: Equation, name: str, dt: float) -> NirNeuron:
    """The NIR neuron whose Euler step of `dt` seconds is `equation`; name: for errors."""
    raise to_nir.unknown(equation)


@to_nir.on(DynamicsEquation)
def _no_family(equation: DynamicsEquation, name: str, dt: float) -> NirNeuron:
    raise UnsupportedGraphError(
        f"{name}: a neuron of family {equation.family}; NIR has no node for it. Export event or "
        "onnx, or train with LIF, PLIF or IF"
    )


@to_nir.on(FixedEquation)
def _no_integers(equation: FixedEquation, name: str, dt: float) -> NirNeuron:
    raise UnsupportedGraphError(
        f"{name}: a fixed-point neuron; NIR has real numbers only. Export the network that it was "
        "made of, or event, onnx or c"
    )


@to_nir.on(ParallelEquation)
def _no_parallel(equation: ParallelEquation, name: str, dt: float) -> NirNeuron:
    raise UnsupportedGraphError(
        f"{name}: a PSN, which mixes all steps; NIR has no node for it. Export event or onnx, or "
        "train with LIF, PLIF or IF"
    )


@to_nir.on(NeuronEquation)
def _leaky(equation: NeuronEquation, name: str, dt: float) -> NirNeuron:
    """A LIF or an IF.

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
    steps = time_constant(equation)
    r = 1.0 if equation.charge in DIVIDES else steps
    return NirNeuron(steps * dt, r, reset, threshold, reset)


def time_constant(equation: NeuronEquation) -> float:
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
    numbers: dict[str, float | None] = {"v_threshold": single(neuron.v_threshold)}
    if reset == "zero":
        if not close(neuron.v_leak, neuron.v_reset):
            raise UnsupportedGraphError(
                f"{name}: v_leak {neuron.v_leak:g} and v_reset {neuron.v_reset:g} differ; "
                "supported is a membrane that decays to its reset value"
            )
        numbers["v_reset"] = single(neuron.v_reset)
    else:
        numbers |= _soft_reset(name, neuron, steps, late=reset == "subtract")
    if steps is None:
        gain = neuron.r * dt
        return _spec(name, family="if", fire=fire, **numbers), 1.0 if close(gain, 1.0) else gain
    if reset == "subtract" and fire == "gt":
        beta = beta_of(steps * dt, dt)
        late = {"tau": 1 / (1 - beta), "decay_input": False, "form": "snntorch", "v_reset": None}
        gain = 1.0 if close(neuron.r, steps) else neuron.r / steps
        threshold = numbers["v_threshold"]
        return _spec(name, family="lif", fire=fire, v_threshold=threshold, **late), gain
    divided = close(neuron.r, 1.0)
    gain = 1.0 if divided or close(neuron.r, steps) else neuron.r
    lif = {"tau": single(steps), "decay_input": divided or gain != 1.0, "form": "spikingjelly"}
    return _spec(name, family="lif", fire=fire, **lif, **numbers), gain


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
    return {"v_reset": None, "v_subtract": single(neuron.v_threshold * steps / (steps - 1))}


def beta_of(tau: float, dt: float) -> float:
    """The shortest decimal of which snnTorch writes this tau, dt / (1 - beta) in float32; the
    nearest float32 if there is none.
    """
    exact = 1 - dt / tau
    for beta in (np.float32(round(exact, digits)) for digits in range(1, DIGITS + 1)):
        if beta < 1 and np.float32(dt) / (np.float32(1) - beta) == np.float32(tau):
            return float(beta)
    return float(np.float32(exact))


def _spec(name: str, **numbers: object) -> NeuronSpec:
    try:
        return NeuronSpec(**numbers)  # type: ignore[arg-type]
    except UsageError as error:
        raise UnsupportedGraphError(f"{name}: {error}") from error


def single(value: float) -> float:
    """The shortest decimal that is the same float32: what every engine computes with."""
    return float(str(np.float32(value)))


def close(a: float, b: float) -> bool:
    """Whether two numbers are the same but for rounding to float32."""
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


@dataclass
class Conventions:
    """How the neurons of a graph are read: what the graph leaves open, and a caller may say.

    What nobody says is assumed as NIR's own equations have it, and each assumption is a sentence
    that goes with the model. A step with which a graph makes no sense is not assumed.

    dt: seconds per step, `dt_known` if it was given or stored. fire, reset: as given, else None.
    assumed: what nobody said, by topic, as sentences.
    """

    dt: float = DEFAULT_DT
    dt_known: bool = False
    fire: FireRule | None = None
    reset: ResetRule | None = None
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fire not in (None, *RULES):
            valid = ", ".join(f"{fire} ({rule})" for fire, rule in RULES.items())
            raise UsageError(f"fire {self.fire!r}; valid: {valid}")
        if self.reset not in (None, *get_args(ResetRule)):
            raise UsageError(f"reset {self.reset!r}; valid: {', '.join(get_args(ResetRule))}")

    def fire_of(self, key: str, node: Any) -> FireRule:
        """When the neurons of a NIR node fire. Raises UsageError for what its metadata deny."""
        said = str(node.metadata.get("fire"))
        stored = next((fire for fire, rule in RULES.items() if rule == said), None)
        if stored is not None:
            self._require_same(key, "fire", self.fire, stored)
            return stored
        if self.fire is None:
            self.assumed["fire"] = (
                "neurons fire above their threshold (v > v_threshold), as NIR's equations say; "
                "where the tool's fire at it too, give --fire ge"
            )
        return self.fire or "gt"

    def reset_of(self, *, leaks: bool) -> ResetRule:
        """How neurons reset that leak, or that do not."""
        if self.reset == "subtract" and leaks:
            self.assumed["timing"] = (
                "a spike takes the threshold off in the next step, after the decay, as snnTorch's "
                "Leaky does; where the tool takes it off at once, give --reset subtract_at_once"
            )
        if self.reset is None:
            self.assumed["reset"] = (
                "a spike sets the membrane to v_reset, as NIR's equations say; where the tool's "
                "takes the threshold off, give --reset subtract"
            )
        elif self.reset != "zero":
            self.assumed["spikes"] = (
                "a neuron sends one spike a step at most; sinabs' and rockpool's send several, "
                "unless they are told not to, of which a NIR file says nothing"
            )
        return self.reset or "zero"

    def accept(self, key: str, own: NeuronSpec) -> NeuronSpec:
        """A neuron that its metadata describe. Raises UsageError if what was given differs."""
        self._require_same(key, "fire", self.fire, own.fire)
        self._require_same(key, "reset", self.reset, "zero")
        return own

    def require_integrator(self, key: str, node: Any) -> None:
        """As `require_step`, of neurons without a threshold: only dt is left open."""
        if not self.dt_known:
            self.assumed["dt"] = ASSUMED_STEP.format(dt=self.dt)

    def _require_same(self, key: str, flag: str, given: str | None, stored: str) -> None:
        if given not in (None, stored):
            text = f"{key}: --{flag} {given}, but its metadata say {stored}; leave the flag out"
            raise UsageError(text)

    def require_step(
        self, key: str, neuron: NirNeuron, others: Callable[[], list[NirNeuron]]
    ) -> None:
        """Raise UnsupportedGraphError, naming --dt and a value, if `dt` makes no sense of a neuron.

        others: all neurons of the graph, which the value should fit.
        """
        if _exponential(neuron, self.dt):
            raise UnsupportedGraphError(
                f"{key}: r = {neuron.r:g} is tau·exp(-dt/tau)/dt (tau = {neuron.tau:g} s, dt = "
                f"{self.dt:g} s), as rockpool writes its neurons: they decay by exp(-dt/tau) and "
                "send several spikes a step, which NIR's equations do not say; supported is one "
                "Euler step of dt. Write it as a LIF with r = tau/dt in NIR, or build the network "
                "of PyTorch's and SpikingJelly's layers with its weights"
            )
        wrong = _misfit(neuron, self.dt, self.dt_known)
        if wrong is not None:
            raise UnsupportedGraphError(f"{key}: {wrong}; {_advice(others())}")
        if not self.dt_known:
            self.assumed["dt"] = ASSUMED_STEP.format(dt=self.dt)


ASSUMED_STEP = (
    "a time step is dt = {dt:g} s of forward Euler, as snnTorch and SpikingJelly write by default; "
    "for another, give --dt"
)


def _exponential(neuron: NirNeuron, dt: float) -> bool:
    """Whether the input is multiplied as in rockpool's NIR files (its to_nir, 3.1.0)."""
    if neuron.tau is None or neuron.tau < dt:
        return False
    ratio, expected = neuron.r * dt / neuron.tau, math.exp(-dt / neuron.tau)
    return math.isclose(ratio, expected, rel_tol=1e-5) and not close(ratio, 1.0)


def _misfit(neuron: NirNeuron, dt: float, known: bool) -> str | None:
    """Why a step of dt makes no sense of a neuron; None if it does.

    A dt that somebody gave is only refused where Euler's step leaves the neuron's own equation.
    """
    step = f"dt = {dt:g} s" if known else f"dt = {dt:g} s, which the graph does not say"
    steps = None if neuron.tau is None else neuron.tau / dt
    if steps is not None and steps < 1 and not close(steps, 1.0):
        return f"tau {steps:g} must be at least 1 step (tau = {neuron.tau:g} s, {step})"
    if known:
        return None
    gain = neuron.r * dt if steps is None else neuron.r / steps
    if steps is None and not close(gain, 1.0):
        return f"an IF with r = {neuron.r:g}, whose input would be multiplied by {gain:g} ({step})"
    if gain > 0 and gain * LARGEST_SHRINKAGE * (1 + 1e-6) < 1:
        return (
            f"its input would be divided by {1 / gain:g} (tau = {neuron.tau:g} s, "
            f"r = {neuron.r:g}, {step})"
        )
    return None


def _advice(neurons: list[NirNeuron]) -> str:
    """Which --dt to give."""
    for dt in _candidates(neurons):
        if all(_misfit(neuron, dt, known=False) is None for neuron in neurons):
            return f"give the step that the tool ran with; --dt {dt:g} fits"
    shortest = min((n.tau for n in neurons if n.tau is not None), default=None)
    most = "" if shortest is None else f"; at most --dt {shortest:g}, the smallest tau, can fit"
    return f"give the step that the tool ran with as --dt{most}"


def _candidates(neurons: list[NirNeuron]) -> Iterator[float]:
    """Steps that tools use: r·dt = 1, r = tau/dt, tau counted in steps, ten steps per tau."""
    taus = [neuron.tau for neuron in neurons if neuron.tau is not None]
    for neuron in neurons:
        if neuron.r > 0 and (neuron.tau is None or not close(neuron.r, 1.0)):
            yield (1.0 if neuron.tau is None else neuron.tau) / neuron.r
    if taus and min(taus) >= 1:
        yield 1.0
    if taus:
        yield min(taus) / 10
        yield min(taus)
