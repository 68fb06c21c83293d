"""One step of a neuron whose only state is its membrane, as kernels compile it.

A kernel is made for a *form*: what of a neuron's equation is code. The other numbers are given to
it as a tuple: of floating-point neurons the same for all, of fixed-point neurons one for all or
one for each, by an index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from soul_deploy.base import dispatch
from soul_deploy.runtime import equations
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.kernels.quotients import without_division

Numbers: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class LeakyForm:
    """Of floating-point neurons. Numbers: constant, threshold, rest, reset target, all float32."""

    charge: equations.ChargeForm
    fire: equations.FireRule
    soft_reset: bool


@dataclass(frozen=True)
class FixedForm:
    """Of fixed-point neurons. Numbers: level and what a spike takes off, both int32, or arrays of
    them, if `wide`; it fires above the level.
    """

    multiplier: int
    shift: int
    lowest: int
    highest: int
    reset: equations.FixedReset
    wide: bool

    @classmethod
    def of(cls, neuron: FixedEquation) -> "FixedForm":
        leak, ends = (neuron.multiplier, neuron.shift), (neuron.lowest, neuron.highest)
        wide = neuron.threshold.ndim + neuron.subtract.ndim > 0
        return cls(*leak, *ends, neuron.reset, wide)


Form: TypeAlias = LeakyForm | FixedForm


class Step(NamedTuple):
    """What kernels call.

    rest   (numbers) -> the membrane before the first step
    after  (membrane, current, own) -> whether it fires, the membrane after the step
    own    (numbers, index) -> the numbers of a neuron, or of all
    """

    rest: Callable[[Any], Any]
    after: Callable[..., Any]
    own: Callable[[Any, Any], Any]


@dispatch.operation_table(Equation)
def form_of(neuron: Equation) -> Form:
    """The form of a neuron that kernels fuse with the currents (`neuron.fuses`)."""
    raise form_of.unknown(neuron)


@form_of.on(NeuronEquation)
def _(neuron: NeuronEquation) -> LeakyForm:
    running = without_division(neuron)
    return LeakyForm(running.charge, running.fire, running.v_reset is None)


form_of.on(FixedEquation)(FixedForm.of)


@dispatch.operation_table(Equation)
def numbers_of(neuron: Equation, channels: int) -> Numbers:
    """The numbers of a neuron, by channel where they are wide."""
    raise numbers_of.unknown(neuron)


@numbers_of.on(NeuronEquation)
def _leaky_numbers(neuron: NeuronEquation, channels: int) -> Numbers:
    running = without_division(neuron)
    numbers = running.constant, running.v_threshold, running.rest, running.target
    return tuple(map(np.float32, numbers))


@numbers_of.on(FixedEquation)
def _fixed_numbers(neuron: FixedEquation, channels: int) -> Numbers:
    """A level beyond the membrane's range is at its end: neither is ever passed. Numbers are of the
    membrane's type, if they fit, so that a step is computed in it.
    """
    level = np.minimum(neuron.threshold - (neuron.fire == "ge"), neuron.highest)
    kind = np.dtype(membrane_type(neuron))
    kind = kind if int(neuron.subtract.max()) <= np.iinfo(kind).max else np.dtype(np.int32)
    numbers = level.astype(kind), neuron.subtract.astype(kind)
    if not FixedForm.of(neuron).wide:
        return tuple(number[()] for number in numbers)
    return tuple(np.array(np.broadcast_to(number, channels)) for number in numbers)


@dispatch.operation_table(Equation)
def membrane_type(neuron: Equation) -> npt.DTypeLike:
    """The type of the membranes."""
    raise membrane_type.unknown(neuron)


membrane_type.on(NeuronEquation)(lambda neuron: np.float32)


@membrane_type.on(FixedEquation)
def _(neuron: FixedEquation) -> npt.DTypeLike:
    ends = np.iinfo(np.int16)
    return np.int16 if ends.min <= neuron.lowest and neuron.highest <= ends.max else np.int32


@cache
def step_of(form: Form) -> Step:
    """The functions of a form."""
    return _fixed_step(form) if isinstance(form, FixedForm) else _leaky_step(form)


def _leaky_step(form: LeakyForm) -> Step:
    charge, fire = equations.CHARGE[form.charge], equations.FIRE[form.fire]
    reset = equations.reset_soft if form.soft_reset else equations.reset_hard

    @register_jitable
    def rest(numbers: Numbers) -> Any:
        return numbers[2]

    @register_jitable
    def after(v: Any, x: Any, own: Numbers) -> Any:
        constant, threshold, at_rest, target = own
        h = charge(v, x, constant, at_rest, threshold)
        spike = fire(h, threshold)
        return spike, reset(h, np.float32(1) if spike else np.float32(0), target)

    return Step(rest, after, _of_all)


@register_jitable
def _of_all(numbers: Numbers, i: int) -> Numbers:
    return numbers


@register_jitable
def _of_each(numbers: Numbers, i: int) -> Numbers:
    return numbers[0][i], numbers[1][i]


def _fixed_step(form: FixedForm) -> Step:
    charge, leak = equations.fixed_charge, equations.fixed_leak
    multiplier, shift = np.int32(form.multiplier), np.int32(form.shift)
    lowest, highest = np.int32(form.lowest), np.int32(form.highest)
    late, soft, hard = (form.reset == reset for reset in ("late", "soft", "hard"))

    @register_jitable
    def rest(numbers: Numbers) -> Any:
        return np.int32(0)

    @register_jitable
    def after(u: Any, x: Any, own: Numbers) -> Any:
        level, taken = own
        leaked = leak(np.int32(u), multiplier, shift)
        if late:
            leaked = np.int32(leaked - taken) if u > level else leaked
        h = charge(leaked, np.int32(x), lowest, highest)
        spike = h > level
        if hard:
            return spike, np.int32(0) if spike else h
        if soft:
            return spike, np.int32(h - taken) if spike else h
        return spike, h

    return Step(rest, after, _of_each if form.wide else _of_all)
