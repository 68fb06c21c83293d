"""Conventions that a NIR graph leaves open: length of a step, firing rule, reset.

A caller may say it. What nobody says is assumed as NIR's own equations have it, and each assumption
is a sentence that goes with the model. A step with which a graph makes no sense is not assumed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.export.nir.neuron import NirNeuron, ResetRule, close
from soul_deploy.export.nir.package import DEFAULT_DT
from soul_deploy.ir import NeuronSpec
from soul_deploy.runtime.equations import FireRule

RULES: Mapping[str, FireRule] = {"v > v_threshold": "gt", "v >= v_threshold": "ge"}
LARGEST_SHRINKAGE = 100.0  # how far below its weights a step's input may be with an assumed dt


@dataclass
class Conventions:
    """How the neurons of a graph are read.

    dt: seconds per step, `dt_known` if it was given or stored. fire, reset: as given, else None.
    assumed: what nobody said, by topic, as sentences.
    """

    dt: float = DEFAULT_DT
    dt_known: bool = False
    fire: FireRule | None = None
    reset: ResetRule | None = None
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fire not in (None, "gt", "ge"):
            raise UsageError(
                f"fire {self.fire!r}; valid: gt (v > v_threshold), ge (v >= v_threshold)"
            )
        if self.reset not in (None, *get_args(ResetRule)):
            raise UsageError(f"reset {self.reset!r}; valid: {', '.join(get_args(ResetRule))}")

    def fire_of(self, key: str, node: Any) -> FireRule:
        """When the neurons of a NIR node fire. Raises UsageError for what its metadata deny."""
        stored = RULES.get(str(node.metadata.get("fire")))
        if stored is not None:
            self._require_same(key, "fire", self.fire, stored)
            return stored
        if self.fire is None:
            self.assumed["fire"] = (
                "neurons fire above their threshold (v > v_threshold), as NIR's equations say; "
                "where the tool's fire at it too, give --fire ge"
            )
        return self.fire or "gt"

    def reset_of(self, neuron: NirNeuron) -> ResetRule:
        """How the neurons reset."""
        if self.reset == "subtract" and neuron.tau is not None:
            self.assumed["timing"] = (
                "a spike takes the threshold off in the next step, after the decay, as snnTorch's "
                "Leaky does; where the tool takes it off at once, give --reset subtract_at_once"
            )
        if self.reset is None:
            self.assumed["reset"] = (
                "a spike sets the membrane to v_reset, as NIR's equations say; where the tool's "
                "takes the threshold off, give --reset subtract"
            )
        return self.reset or "zero"

    def accept(self, key: str, own: NeuronSpec) -> NeuronSpec:
        """A neuron that its metadata describe. Raises UsageError if what was given differs."""
        self._require_same(key, "fire", self.fire, own.fire)
        self._require_same(key, "reset", self.reset, "zero")
        return own

    def _require_same(self, key: str, flag: str, given: str | None, stored: str) -> None:
        if given not in (None, stored):
            raise UsageError(
                f"{key}: --{flag} {given}, but its metadata say {stored}; leave the flag out"
            )

    def require_step(
        self, key: str, neuron: NirNeuron, others: Callable[[], list[NirNeuron]]
    ) -> None:
        """Raise UnsupportedGraphError, naming --dt and a value, if `dt` makes no sense of a neuron.

        others: all neurons of the graph, which the value should fit.
        """
        wrong = _misfit(neuron, self.dt, self.dt_known)
        if wrong is not None:
            raise UnsupportedGraphError(f"{key}: {wrong}; {_advice(others())}")
        if not self.dt_known:
            self.assumed["dt"] = (
                f"a time step is dt = {self.dt:g} s of forward Euler, as snnTorch and SpikingJelly "
                "write by default; for another, give --dt"
            )


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
