"""How far rounding can move a neuron's state: its equations run on values with error bounds.

A forward error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.3): every
float32 operation adds half a unit in the last place of its result, and carries on the errors
of its operands by its derivative. So a family whose equations amplify differences (squares,
exponentials, adaptation) gets the bound that follows from them, and no constant is chosen for it.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import brief, dispatch, reduction
from soul_deploy.runtime.dynamics.equation import DynamicsEquation, Number, parts_of
from soul_deploy.runtime.dynamics.form import BINARY, Operations
from soul_deploy.runtime.equations import CHARGE, FIRE, Equation, NeuronEquation, reset_soft

HALF_UNIT = 2.0**-24
"""Of a float32 result: what one rounding can move it by, relative to it."""
SIGMOID_UNITS = 8
"""Half units of 1 by which an engine's sigmoid may differ from the exact one.

Measured on 8 million float32 from ±1e-8 to ±88 against 80-bit numbers, with AVX-512 and AVX2:
PyTorch 2.14 1.5, numpy 2.4 1.5, compiled 1.5, ONNX Runtime 1.32 2.7; the margin is a factor of 2.9.
Relative to the sigmoid itself there is no bound: where that is below 1e-7, ONNX Runtime gives other
numbers as small.
"""
EXP_UNITS = 8
"""Half units of its value by which an engine's exp may differ from the exact one.

Measured likewise, where exp is a normal float32: PyTorch 1.1, numpy 3.3, compiled 1.0, ONNX Runtime
1.2; the margin is a factor of 2.4.
"""
SMALLEST_NORMAL = 2.0**-126
"""Below it an engine may give 0 instead of a subnormal number."""

PARTS = ("value", "error")  # of Bounded

Operand = Union["Bounded", float]


@brief
@dataclass(frozen=True)
class Bounded:
    """A float64 value, and how far a float32 execution's value can be from it; one shape."""

    value: Tensor
    error: Tensor

    def _rounded(self, value: Tensor, carried: Tensor) -> "Bounded":
        return Bounded(value, carried + HALF_UNIT * value.abs())

    def __add__(self, other: Operand) -> "Bounded":
        o = _bounded(other, self)
        return self._rounded(self.value + o.value, self.error + o.error)

    def __sub__(self, other: Operand) -> "Bounded":
        o = _bounded(other, self)
        return self._rounded(self.value - o.value, self.error + o.error)

    def __mul__(self, other: Operand) -> "Bounded":
        o = _bounded(other, self)
        carried = self.value.abs() * o.error + o.value.abs() * self.error + self.error * o.error
        return self._rounded(self.value * o.value, carried)

    def __truediv__(self, other: Operand) -> "Bounded":
        o = _bounded(other, self)
        value = self.value / o.value
        carried = (self.error + value.abs() * o.error) / (o.value.abs() - o.error)
        return self._rounded(value, torch.where(carried >= 0, carried, torch.inf))

    __radd__ = __add__

    def __rsub__(self, other: float) -> "Bounded":
        return _bounded(other, self) - self

    def __rmul__(self, other: float) -> "Bounded":
        return self * other

    def __rtruediv__(self, other: float) -> "Bounded":
        return _bounded(other, self) / self

    def __gt__(self, other: Operand) -> "Bounded":
        return _above(self, other)

    def __ge__(self, other: Operand) -> "Bounded":
        sure, o = _above(self, other), _bounded(other, self)
        return Bounded((self.value >= o.value).to(self.value), sure.error)


def _bounded(operand: Operand, like: Bounded) -> Bounded:
    """A constant is the same float32 number in every engine."""
    if isinstance(operand, Bounded):
        return operand
    value = torch.full_like(like.value, operand)
    return Bounded(value, torch.zeros_like(value))


def _sigmoid(x: Bounded) -> Bounded:
    value, nearest = x.value.sigmoid(), (x.value.abs() - x.error).clamp(min=0).sigmoid()
    steepest = nearest * (1 - nearest)
    return Bounded(value, steepest * x.error + SIGMOID_UNITS * HALF_UNIT)


def _exp(x: Bounded) -> Bounded:
    value = x.value.exp()
    moved = value * (x.error.expm1() + EXP_UNITS * HALF_UNIT * x.error.exp())
    return Bounded(value, moved + SMALLEST_NORMAL)


def _minimum(a: Bounded, b: Operand) -> Bounded:
    o = _bounded(b, a)
    return Bounded(torch.minimum(a.value, o.value), torch.maximum(a.error, o.error))


def _choose(s: Bounded, a: Operand, b: Bounded) -> Bounded:
    """Where s is not sure, it may be either."""
    after = _bounded(a, b)
    fired = s.value > 0
    error = torch.where(fired, after.error, b.error)
    either = torch.maximum(after.error, b.error) + (after.value - b.value).abs()
    return Bounded(
        torch.where(fired, after.value, b.value), torch.where(s.error > 0, either, error)
    )


def _above(a: Bounded, b: Operand) -> Bounded:
    """0 or 1, and off by 1 where rounding can decide."""
    o = _bounded(b, a)
    unsure = (a.value - o.value).abs() <= a.error + o.error
    return Bounded((a.value > o.value).to(a.value), unsure.to(a.value))


def _sent(p: Any, level: Any, low: Any, high: Any) -> Any:
    raise NotImplementedError("what is sent is given, not computed")


BOUNDED = Operations(
    sigmoid=_sigmoid,
    exp=_exp,
    relu=lambda x: Bounded(x.value.relu(), x.error),
    minimum=_minimum,
    choose=_choose,
    held=lambda s: s,
    above=_above,
    send={"gt": _sent, "ge": _sent, "round": _sent, "round_up": _sent},
)


@dispatch.operation_table(Equation)
def membranes_of(equation: Equation, current: Tensor, error: Tensor) -> list[Bounded]:
    """The membrane after each step; what is sent, which resets it, is computed, and may be unsure.

    current, error (of the current): (T, B, n) float64, n of a vector of neurons.
    """
    raise membranes_of.unknown(equation)


@membranes_of.on(NeuronEquation)
def _leaky(equation: NeuronEquation, current: Tensor, error: Tensor) -> list[Bounded]:
    numbers = equation.constant, equation.rest, equation.v_threshold, equation.target
    constant, rest, threshold, target = (float(np.float32(number)) for number in numbers)
    v = _bounded(rest, Bounded(current[0], error[0]))
    found = []
    for x, moved in zip(current, error, strict=True):
        h = CHARGE[equation.charge](v, Bounded(x, moved), constant, rest, threshold)
        s = FIRE[equation.fire](h, threshold)
        soft = equation.v_reset is None  # a hard reset forgets the membrane, and its error
        v = reset_soft(h, s, target) if soft else _choose(s, target, h)
        found.append(v)
    return found


@membranes_of.on(DynamicsEquation)
def _of_family(equation: DynamicsEquation, current: Tensor, error: Tensor) -> list[Bounded]:
    parts, nothing = parts_of(equation.family, BOUNDED), torch.zeros_like(current[0])
    state = _at_rest(equation, nothing)
    found = []
    for t, (x, moved) in enumerate(zip(current, error, strict=True)):
        numbers = tuple(_exact(c, nothing) for c in equation.at_step(t))
        state = parts.charge(Bounded(x, moved), state, numbers)
        sent = _decided(equation, *parts.decide(state, numbers))
        state = parts.settle(sent, state, numbers)
        found.append(state[0])
    return found


def _decided(equation: DynamicsEquation, potential: Bounded, level: Operand) -> Bounded:
    """What is sent, and off by as much as rounding of the potential can change it."""
    gap = potential - _nearest(equation, potential, level)
    if equation.send in BINARY:
        threshold = _bounded(level, potential)
        return potential > threshold if equation.send == "gt" else potential >= threshold
    within = potential.value.clamp(equation.low, equation.high)
    upwards = equation.send == "round_up"
    sent = (within + 0.5).floor() if upwards else within.round()
    unsure = gap.value.abs() <= gap.error
    return Bounded(sent, torch.where(unsure, 1 + potential.error.floor(), 0.0))


def _at_rest(equation: DynamicsEquation, nothing: Tensor) -> tuple[Bounded, ...]:
    return tuple(
        Bounded(torch.full_like(nothing, float(torch.tensor(v, dtype=torch.float32))), nothing)
        for v in equation.start
    )


def scores_of(membranes: Sequence[Bounded], over_time: reduction.OverTime) -> Bounded:
    """What becomes of the steps, as soul_deploy/base/reduction.py says."""
    if over_time == "last":
        return membranes[-1]
    if over_time == "max":
        values, errors = (torch.stack([getattr(v, part) for v in membranes]) for part in PARTS)
        return Bounded(values.amax(0), errors.amax(0))
    total = reduce(operator.add, membranes)
    share = float(np.float32(1 / len(membranes)))
    return total if over_time == "sum" else total * share


def teacher_forced(
    equation: DynamicsEquation, current: Tensor, error: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance of the potential from where what is sent changes, and how far rounding can move it.

    current, error (of the current), sent: (T, ...) float64; what was sent settles the state.
    """
    parts = parts_of(equation.family, BOUNDED)
    nothing = torch.zeros_like(current[0])
    state = _at_rest(equation, nothing)
    distances, errors = [], []
    for t, (x, moved, s) in enumerate(zip(current, error, sent, strict=True)):
        numbers = tuple(_exact(c, nothing) for c in equation.at_step(t))
        state = parts.charge(Bounded(x, moved), state, numbers)
        potential, level = parts.decide(state, numbers)
        gap = potential - _nearest(equation, potential, level)
        distances.append(gap.value)
        errors.append(gap.error)
        state = parts.settle(Bounded(s, nothing), state, numbers)
    return torch.stack(distances), torch.stack(errors)


def _exact(number: Number, like: Tensor) -> Operand:
    """A constant: the same float32 in every engine."""
    if not isinstance(number, np.ndarray):
        return float(np.float32(number))
    value = torch.from_numpy(number.astype(np.float64)).expand_as(like)
    return Bounded(value, torch.zeros_like(like))


def _nearest(equation: DynamicsEquation, potential: Bounded, level: Operand) -> Bounded:
    """The threshold; of a neuron that rounds, the nearest half between two integers it sends."""
    if equation.send in BINARY:
        return _bounded(level, potential)
    half = potential.value.floor() + 0.5
    half = half.clamp(equation.low + 0.5, equation.high - 0.5)
    return Bounded(half, torch.zeros_like(half))
