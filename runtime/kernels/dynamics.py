"""Currents to what neurons send: one compiled loop per family and rule, made from its equations."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.dynamics.equation import DYNAMICS, DynamicsEquation, parts_of
from soul_deploy.runtime.dynamics.form import Parts, SendRule
from soul_deploy.runtime.dynamics.operations import SCALAR
from soul_deploy.runtime.kernels.cache import cached_njit

DynamicsUpdate = Callable[..., None]

BLOCK = 256
"""Neurons that an update carries through all steps at once; their state stays in L1."""


@cache
def _taken(count: int) -> Callable[[Array, int], Any]:
    """(rows, i) -> the tuple of column i of the first `count` rows."""
    if count == 1:
        return _first
    before, last = _taken(count - 1), count - 1

    @register_jitable
    def take(rows: Array, i: int) -> Any:
        return before(rows, i) + (rows[last, i],)  # noqa: RUF005  (numba adds tuples)

    taking: Callable[[Array, int], Any] = take
    return taking


@register_jitable
def _first(rows: Array, i: int) -> Any:
    return (rows[0, i],)


@cache
def _stored(count: int) -> Callable[[Array, int, Any], None]:
    """(rows, i, values) -> put a tuple into column i of the first `count` rows."""
    if count == 1:
        return _put_first
    before, last = _stored(count - 1), count - 1

    @register_jitable
    def store(rows: Array, i: int, values: Any) -> None:
        before(rows, i, values)
        rows[last, i] = values[last]

    storing: Callable[[Array, int, Any], None] = store
    return storing


@register_jitable
def _put_first(rows: Array, i: int, values: Any) -> None:
    rows[0, i] = values[0]


@cache
def dynamics_kernel(family: str, send: SendRule, lanes: bool, wide: bool) -> DynamicsUpdate:
    """The compiled update of a family.

    lanes: of currents (n, lanes), which stand side by side. wide: with a number for each neuron.
    """
    dynamics = DYNAMICS[family]
    sizes, parts = (len(dynamics.state), len(dynamics.constants)), parts_of(family, SCALAR)
    return _make_update(*sizes, parts, SCALAR.send[send], lanes, wide)


def constants_of(neuron: DynamicsEquation, shape: tuple[int, ...], index: Array | None) -> Array:
    """The constants as kernels take them: float32 (T or 1, K, n or 1), in channel-last order.

    shape: of the neurons, (C, H, W) or (N,); index: of those that are updated, None: all.
    """
    arrays = neuron.arrays
    steps = max([1, *(len(a) for a in arrays.values())])
    if not any(a[0].size > 1 for a in arrays.values()):
        columns = 1
    else:
        columns = math.prod(shape) if index is None else len(index)
    numbers = np.empty((steps, len(neuron.constants), columns), np.float32)
    for k, constant in enumerate(neuron.constants):
        if isinstance(constant, np.ndarray) and columns > 1:
            full = np.broadcast_to(constant, (len(constant), *shape))
            flat = np.moveaxis(full, 1, -1).reshape(len(constant), -1)
            constant = flat if index is None else flat[:, index]
        elif isinstance(constant, np.ndarray):
            constant = constant.reshape(-1, 1)
        numbers[:, k] = constant
    return numbers


def _make_update(
    states: int, constants: int, parts: Parts, send: Callable[..., Any], lanes: bool, wide: bool
) -> DynamicsUpdate:
    charge, decide, settle = parts.charge, parts.decide, parts.settle
    state_at, store, number_at = _taken(states), _stored(states), _taken(constants)

    @cached_njit
    def update(
        current: Array, numbers: Array, low: np.float32, high: np.float32, start: Array,
        carry: bool, state: Array, sent: Array, begin: int, end: int,
    ) -> None:  # fmt: skip
        """Charge the neurons from `begin` to `end`, send and settle, for all steps.

        current (T, n), (1, n), the same at every step, or (n, lanes); numbers (T or 1, K, n or 1)
        the constants; state (S, n), kept from before if `carry`, otherwise `start` (S,); sent
        (T, n) integers.
        """
        repeated = not lanes and current.shape[0] == 1
        for first in range(begin, end, BLOCK):
            last = min(first + BLOCK, end)
            if not carry:
                for k in range(states):
                    state[k, first:last] = start[k]
            for t in range(len(sent)):
                given = numbers[min(t, len(numbers) - 1)]
                c = number_at(given, 0)
                for i in range(first, last):
                    if wide:
                        c = number_at(given, i)
                    x = current[i, t] if lanes else current[0 if repeated else t, i]
                    charged = charge(x, state_at(state, i), c)
                    potential, level = decide(charged, c)
                    s = send(potential, level, low, high)
                    sent[t, i] = s
                    store(state, i, settle(s, charged, c))

    return update
