"""The operations of numpy, and of compiled float32 scalars."""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from soul_deploy.runtime.dynamics.form import Operations, Value


def _sends(p: Value, fired: Value) -> Value:
    """A truth as a number of the potential's dtype."""
    return np.asarray(fired).astype(np.result_type(p))


def _within(p: Value, low: Value, high: Value) -> Value:
    return np.minimum(np.maximum(p, low), high)


def _chosen(s: Value, a: Value, b: Value) -> Value:
    chosen: Value = np.where(s > 0, a, b)
    return chosen.astype(np.result_type(b))


def _numpy_round_up(p: Value, low: Value, high: Value) -> Value:
    return np.floor(_within(p, low, high) + np.float32(0.5))


def _numpy_sigmoid(x: Value) -> Value:
    one = np.ones((), np.result_type(x))
    with np.errstate(over="ignore"):  # exp(-x) may be infinite: 1 / inf is 0
        return one / (one + np.exp(-x))


def _numpy_exp(x: Value) -> Value:
    with np.errstate(over="ignore"):  # a membrane may run away to infinity, from which it is reset
        return np.exp(x)


NUMPY = Operations(
    sigmoid=_numpy_sigmoid,
    exp=_numpy_exp,
    relu=lambda x: np.maximum(x, np.zeros((), np.result_type(x))),
    minimum=np.minimum,
    choose=_chosen,
    held=lambda s: s,
    above=lambda a, b: _sends(a, a > b),
    send={
        "gt": lambda p, level, low, high: _sends(p, p > level),
        "ge": lambda p, level, low, high: _sends(p, p >= level),
        "round": lambda p, level, low, high: np.rint(_within(p, low, high)),
        "round_up": lambda p, level, low, high: _numpy_round_up(p, low, high),
    },
)
"""On arrays, in their own dtype."""


@register_jitable
def scalar_sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) of a float32."""
    one = np.float32(1)
    return one / (one + np.exp(-x))


@register_jitable
def scalar_exp(x: Any) -> Any:
    """exp of a float32."""
    return np.exp(x)


@register_jitable
def scalar_relu(x: Any) -> Any:
    """x, or 0 where it is below."""
    return max(x, np.float32(0))


@register_jitable
def scalar_minimum(a: Any, b: Any) -> Any:
    """The smaller one of two float32."""
    return min(a, b)


@register_jitable
def scalar_choose(s: Any, a: Any, b: Any) -> Any:
    """a after a spike, else b."""
    return a if s > 0 else b


@register_jitable
def scalar_held(s: Any) -> Any:
    """What was sent."""
    return s


@register_jitable
def scalar_above(a: Any, b: Any) -> Any:
    """1 where a is above b."""
    return np.float32(a > b)


@register_jitable
def scalar_gt(p: Any, level: Any, low: Any, high: Any) -> Any:
    """1 above the level."""
    return np.float32(p > level)


@register_jitable
def scalar_ge(p: Any, level: Any, low: Any, high: Any) -> Any:
    """1 at the level and above."""
    return np.float32(p >= level)


@register_jitable
def scalar_round(p: Any, level: Any, low: Any, high: Any) -> Any:
    """The nearest integer from low to high, ties to the even one."""
    return np.rint(min(max(p, low), high))


@register_jitable
def scalar_round_up(p: Any, level: Any, low: Any, high: Any) -> Any:
    """The nearest integer from low to high, ties upwards."""
    return np.floor(min(max(p, low), high) + np.float32(0.5))


SCALAR = Operations(
    sigmoid=scalar_sigmoid,
    exp=scalar_exp,
    relu=scalar_relu,
    minimum=scalar_minimum,
    choose=scalar_choose,
    held=scalar_held,
    above=scalar_above,
    send={"gt": scalar_gt, "ge": scalar_ge, "round": scalar_round, "round_up": scalar_round_up},
)
"""On float32 scalars, compiled; plain Python where compilation is off."""
