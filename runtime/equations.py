"""The dynamics of one neuron, written once.

Each function below is plain arithmetic on its arguments. PyTorch calls them with tensors, numba
compiles them on float32 scalars, the exporters emit the same operations in their format. No
function holds a constant: a Python literal would promote a float32 scalar to float64.

The *form* of the charge matters in the last bit, so it is a field of the neuron: two expressions
that are equal on paper round differently, and a sum that lands on the other side of the threshold
is another spike.

Symbols: v membrane potential, x input current, a the form's constant (time constant tau in steps,
or a factor), r the resting potential (v_reset, or 0 with soft reset), s spike (0 or 1). Each charge
takes the threshold too, for the forms that tell a spike of the last step from v.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array, brief

Value: TypeAlias = Any  # a float32 scalar under numba, a tensor under PyTorch

ChargeForm = Literal[
    "integrate",
    "soul_lif_decay",
    "soul_lif",
    "decay_divide",
    "decay_multiply",
    "leak_multiply",
    "leak_multiply_late",
    "leak_subtract_divide",
    "leak_subtract_multiply",
]
FireRule = Literal["gt", "ge"]
FixedReset = Literal["hard", "soft", "late", "none"]
FIXED_RESETS: tuple[FixedReset, ...] = get_args(FixedReset)


@register_jitable
def charge_integrate(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """IF: v + x. Constant and resting potential are not used."""
    return v + x


@register_jitable
def charge_soul_lif_decay(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """Soul's LIF with decay_input, a = tau (soul/neuron/LIF.py, neuronal_charge)."""
    return v + (r - v + x) / a


@register_jitable
def charge_soul_lif(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """Soul's LIF without decay_input, a = tau (soul/neuron/LIF.py, neuronal_charge)."""
    return v + (r - v) / a + x


@register_jitable
def charge_decay_divide(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """SpikingJelly's LIF with decay_input, a = tau."""
    return v + (x - (v - r)) / a


@register_jitable
def charge_decay_multiply(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """Soul's and SpikingJelly's PLIF with decay_input, a = sigmoid(w)."""
    return v + (x - (v - r)) * a


@register_jitable
def charge_leak_multiply(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """PLIF without decay_input and r = 0, a = 1 - sigmoid(w); LIF with a = 1 - 1/tau."""
    return v * a + x


@register_jitable
def charge_leak_multiply_late(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """snnTorch's Leaky with reset_mechanism "subtract", a = beta (snntorch/_neurons/leaky.py,
    _base_sub): the threshold of a spike comes off a step later, behind decay and input. v is not
    reset yet, so it tells whether there was a spike. The neuron's own reset takes nothing off.
    """
    return v * a + x - (v > threshold) * threshold


@register_jitable
def charge_leak_subtract_divide(v: Value, x: Value, a: Value, r: Value, threshold: Value) -> Value:
    """SpikingJelly's LIF without decay_input and r != 0, a = tau."""
    return v - (v - r) / a + x


@register_jitable
def charge_leak_subtract_multiply(
    v: Value, x: Value, a: Value, r: Value, threshold: Value
) -> Value:
    """PLIF without decay_input and r != 0, a = sigmoid(w)."""
    return v - (v - r) * a + x


@register_jitable
def fire_gt(v: Value, threshold: Value) -> Value:
    """Soul: a neuron at its threshold does not fire."""
    return v > threshold


@register_jitable
def fire_ge(v: Value, threshold: Value) -> Value:
    """SpikingJelly and the papers' code: a neuron at its threshold fires."""
    return v >= threshold


@register_jitable
def reset_hard(v: Value, s: Value, target: Value) -> Value:
    """target = v_reset. Exact for every finite v: v - v is 0, and v - 0 is v."""
    return v - s * v + s * target


@register_jitable
def reset_soft(v: Value, s: Value, target: Value) -> Value:
    """target = what a spike takes off: v_threshold, more, or nothing (NeuronEquation.target)."""
    return v - s * target


@register_jitable
def fixed_leak(u: Value, multiplier: Value, shift: Value) -> Value:
    """floor(u · m / 2^k) of int32; the product fits it."""
    return np.int32(np.int32(u * multiplier) >> shift)


@register_jitable
def fixed_charge(u: Value, x: Value, low: Value, high: Value) -> Value:
    """u + x, which fits int32, between low and high."""
    return np.int32(np.minimum(np.maximum(np.int32(u + x), low), high))


CHARGE: dict[ChargeForm, Callable[[Value, Value, Value, Value, Value], Value]] = {
    "integrate": charge_integrate,
    "soul_lif_decay": charge_soul_lif_decay,
    "soul_lif": charge_soul_lif,
    "decay_divide": charge_decay_divide,
    "decay_multiply": charge_decay_multiply,
    "leak_multiply": charge_leak_multiply,
    "leak_multiply_late": charge_leak_multiply_late,
    "leak_subtract_divide": charge_leak_subtract_divide,
    "leak_subtract_multiply": charge_leak_subtract_multiply,
}
LEAK_AND_GAIN: dict[ChargeForm, Callable[[float], tuple[float, float]]] = {
    "integrate": lambda a: (1.0, 1.0),
    "soul_lif_decay": lambda a: (1 - 1 / a, 1 / a),
    "soul_lif": lambda a: (1 - 1 / a, 1.0),
    "decay_divide": lambda a: (1 - 1 / a, 1 / a),
    "decay_multiply": lambda a: (1 - a, a),
    "leak_multiply": lambda a: (a, 1.0),
    "leak_multiply_late": lambda a: (a, 1.0),
    "leak_subtract_divide": lambda a: (1 - 1 / a, 1.0),
    "leak_subtract_multiply": lambda a: (1 - a, 1.0),
}
"""Every form is on paper u' = leak · u + gain · x, with u the membrane above its resting value: of
each with its constant, what both are multiplied by."""
MOST_SHIFT = 15
"""The largest k of a fixed-point leak m / 2^k."""
FIRE: dict[FireRule, Callable[[Value, Value], Value]] = {"gt": fire_gt, "ge": fire_ge}


def reset_rule(v_reset: float | None) -> Callable[[Value, Value, Value], Value]:
    """The reset to a value, or the soft one (None)."""
    return reset_soft if v_reset is None else reset_hard


def rest_of(v_reset: float | None) -> float:
    """r: where the membrane starts, and where it decays to."""
    return 0.0 if v_reset is None else v_reset


def reset_target(v_threshold: float, v_reset: float | None, v_subtract: float | None) -> float:
    """The reset constant: v_reset, or with soft reset (None) the amount that a spike subtracts."""
    if v_reset is not None:
        return v_reset
    return v_threshold if v_subtract is None else v_subtract


@dataclass(frozen=True)
class Equation:
    """A neuron as deployed: every number it computes with; the family of the tables over neurons.

    state  names of the variables that a neuron keeps from step to step, the membrane first
    start  their values before the first step
    whole  whether a step depends on the inputs of all steps, later ones too
    fuses  whether kernels that compute currents update such neurons themselves
    steps  for how many steps there are numbers; None: for any
    low, high   the least and the largest integer that a neuron sends: 0 and 1 for spikes
    """

    fuses: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    if TYPE_CHECKING:  # a field of one class is a constant of another

        @property
        def state(self) -> tuple[str, ...]: ...

        @property
        def low(self) -> int: ...

        @property
        def high(self) -> int: ...

        @property
        def steps(self) -> int | None: ...

    else:
        state, low, high, steps = ("v",), 0, 1, None

    @property
    def start(self) -> tuple[float, ...]:
        raise NotImplementedError

    def advance(
        self, state: tuple[Value, ...], x: Value, t: int = 0
    ) -> tuple[Value, tuple[Value, ...]]:
        """Step t on numpy arrays: (what is sent, the state after it)."""
        raise NotImplementedError


@dataclass(frozen=True)
class NeuronEquation(Equation):
    """A neuron whose only state is its membrane: charge, fire, reset, each with one constant.

    charge      which of the forms above
    constant    a, the form's constant (tau in steps, or a factor); unused by `integrate`
    v_threshold firing threshold
    v_reset     value after a spike (hard reset), or None: the threshold is subtracted (soft reset)
    fire        "gt": v > v_threshold, "ge": v >= v_threshold
    v_subtract  with soft reset, what a spike takes off at once; None: the threshold; 0: no reset,
                or one that the charge brings a step later
    """

    fuses: ClassVar[bool] = True
    charge: ChargeForm
    constant: float
    v_threshold: float
    v_reset: float | None
    fire: FireRule
    v_subtract: float | None = None

    @property
    def target(self) -> float:
        """The reset constant: v_reset, or with soft reset the amount that a spike subtracts."""
        return reset_target(self.v_threshold, self.v_reset, self.v_subtract)

    @property
    def rest(self) -> float:
        """r: where the membrane starts, and where it decays to."""
        return rest_of(self.v_reset)

    @property
    def start(self) -> tuple[float, ...]:
        return (self.rest,)

    def advance(
        self, state: tuple[Value, ...], x: Value, t: int = 0
    ) -> tuple[Value, tuple[Value, ...]]:
        (v,) = state
        spike, v = self.step(v, x)
        return spike, (v,)

    def step(self, v: Value, x: Value) -> tuple[Value, Value]:
        """One time step on numpy values or tensors: (v, x) -> (spike as bool, v after reset)."""
        threshold = getattr(v.dtype, "type", float)(
            self.v_threshold
        )  # numpy: bool · float is double
        h = CHARGE[self.charge](v, x, self.constant, self.rest, threshold)
        spike = FIRE[self.fire](h, threshold)
        s = spike * (h * 0 + 1)  # the spike in the dtype of v
        return spike, reset_rule(self.v_reset)(h, s, self.target)


@brief
@dataclass(frozen=True, eq=False)
class FixedEquation(Equation):
    """A neuron of integers (docs/fixed-point.md). The membrane u counts from the resting value.

    With I the current: h = floor(u · m / 2^k) + I, between lowest and highest; it fires if h is
    above the threshold, or at it.

    multiplier, shift  m and k: the leak 1 - 1/tau; 1 and 0 without one
    lowest, highest    of the membrane, which saturates there
    threshold          int32 () or (C,)
    subtract           int32 () or (C,): what a spike takes off
    fire               "gt": h > threshold, "ge": h >= threshold
    reset              "hard": to 0, "soft": `subtract` comes off at once, "late": a step later,
                       before the membrane is clamped, "none"
    """

    fuses: ClassVar[bool] = True
    multiplier: int
    shift: int
    lowest: int
    highest: int
    threshold: Array
    subtract: Array
    fire: FireRule
    reset: FixedReset

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same: all numbers are equal."""
        if not isinstance(other, FixedEquation):
            return NotImplemented
        same = np.array_equal(self.threshold, other.threshold)
        same = same and np.array_equal(self.subtract, other.subtract)
        return same and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[int | str, ...]:
        return self.multiplier, self.shift, self.lowest, self.highest, self.fire, self.reset

    @property
    def start(self) -> tuple[float, ...]:
        return (0,)

    def numbers_for(self, axes: int) -> tuple[Array, Array]:
        """Threshold and what is subtracted, for neurons (C, ...) with so many axes."""
        shape = (-1, *[1] * (axes - 1))
        each = (self.threshold, self.subtract)
        threshold, subtract = (n if n.ndim == 0 else n.reshape(shape) for n in each)
        return threshold, subtract

    def advance(
        self, state: tuple[Value, ...], x: Value, t: int = 0
    ) -> tuple[Value, tuple[Value, ...]]:
        """On integers of neurons (C, ...), the channels first: (spike as bool, the membrane)."""
        (u,) = state
        x = np.asarray(x)
        spike, u = self.step(u, x, *self.numbers_for(x.ndim))
        return spike, (u,)

    def step(self, u: Value, x: Value, threshold: Value, subtract: Value) -> tuple[Value, Value]:
        """One step on int32 arrays, whose numbers have their shape or are one for all."""
        leaked = fixed_leak(np.int32(u), np.int32(self.multiplier), np.int32(self.shift))
        if self.reset == "late":
            leaked = np.int32(leaked - FIRE[self.fire](u, threshold) * subtract)
        h = fixed_charge(leaked, np.int32(x), np.int32(self.lowest), np.int32(self.highest))
        spike = FIRE[self.fire](h, threshold)
        if self.reset == "hard":
            return spike, np.int32(h * ~spike)
        return spike, np.int32(h - spike * subtract) if self.reset == "soft" else h


def leak_numbers(leak: float, bits: int) -> tuple[int, int]:
    """m and k of the leak m / 2^k, for membranes from -2^bits to 2^bits - 1.

    k is the smallest for which the leak is exact, else the largest that is allowed.
    """
    most = min(MOST_SHIFT, 30 - bits)
    for k in range(most + 1):
        scaled = leak * 2.0**k
        if scaled == int(scaled):
            return int(scaled), k
    return min(round(leak * 2.0**most), (1 << most) - 1), most
