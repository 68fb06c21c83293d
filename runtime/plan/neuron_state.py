"""What a population's neurons keep, what they send, and the kernel call that updates them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, dispatch
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.format.validate import Edge, EdgeKind, Shape
from soul_deploy.runtime.kernels import dynamics, neurons, parallel, steps
from soul_deploy.runtime.plan.layer_plan import aligned

Bound = tuple[Callable[..., None], tuple[Any, ...]]
"""A kernel and its arguments."""


@dispatch.operation_table(Equation)
def state_at_rest(neuron: Equation, count: int) -> Array:
    """The state of so many neurons before the first step; the last axis is theirs."""
    raise state_at_rest.unknown(neuron)


@state_at_rest.on(NeuronEquation, FixedEquation)
def _membranes(neuron: Equation, count: int) -> Array:
    v = aligned((count,), steps.membrane_type(neuron))
    v[:] = neuron.start[0]
    return v


@state_at_rest.on(DynamicsEquation)
def _variables(neuron: DynamicsEquation, count: int) -> Array:
    state = aligned((len(neuron.start), count), np.float32)
    state[...] = np.array(neuron.start, np.float32)[:, None]
    return state


@state_at_rest.on(ParallelEquation)
def _nothing(neuron: ParallelEquation, count: int) -> Array:
    return np.empty((0, count), np.float32)


@dispatch.operation_table(Equation)
def update_numbers(neuron: Equation, shape: Shape, index: Array | None) -> Array | None:
    """What the update of neurons of this shape reads beside the current, made once for all their
    partitions; index: of those that are updated, channel-last, None: all.
    """
    raise update_numbers.unknown(neuron)


update_numbers.on(NeuronEquation, ParallelEquation)(lambda neuron, shape, index: None)
update_numbers.on(DynamicsEquation)(dynamics.constants_of)


@update_numbers.on(FixedEquation)
def _by_neuron(neuron: FixedEquation, shape: Shape, index: Array | None) -> Array | None:
    """int32 (1, 2, n), if channels differ."""
    if not steps.FixedForm.of(neuron).wide:
        return None
    by_channel = steps.numbers_of(neuron, shape[0])
    place = np.arange(math.prod(shape)) if index is None else index.astype(np.int64)
    return np.stack([number[place % shape[0]] for number in by_channel])[None]


@dispatch.operation_table(Equation)
def update_call(
    neuron: Equation, current: Array, state: Array, sent: Array, bounds: tuple[int, int], *,
    carry: bool, lanes: int, numbers: Array | None, origin: int = 0,
) -> Bound:  # fmt: skip
    """The kernel that updates the neurons of the columns `bounds`, and its arguments.

    current (T or 1, n), or (n, lanes) from neuron `origin` on; state as `state_at_rest`; sent
    (T, n), written; numbers as `update_numbers`.
    """
    raise update_call.unknown(neuron)


@update_call.on(NeuronEquation, FixedEquation)
def _fusing(
    neuron: Equation, current: Array, state: Array, sent: Array, bounds: tuple[int, int], *,
    carry: bool, lanes: int, numbers: Array | None, origin: int = 0,
) -> Bound:  # fmt: skip
    scratch = (origin, aligned((lanes, neurons.LANE_BLOCK), current.dtype)) if lanes else ()
    taken = steps.numbers_of(neuron, 1) if numbers is None else tuple(numbers[0])
    given = current, taken, carry, state, sent, *bounds, *scratch
    return neurons.update_kernel(steps.form_of(neuron), lanes), given


@update_call.on(DynamicsEquation)
def _dynamics(
    neuron: DynamicsEquation, current: Array, state: Array, sent: Array, bounds: tuple[int, int],
    *, carry: bool, lanes: int, numbers: Array | None, origin: int = 0,
) -> Bound:  # fmt: skip
    assert numbers is not None
    limits = np.float32(neuron.low), np.float32(neuron.high)
    start, wide = np.array(neuron.start, np.float32), numbers.shape[2] > 1
    kernel = dynamics.dynamics_kernel(neuron.family, neuron.send, lanes > 0, wide)
    return kernel, (current, numbers, *limits, start, carry, state, sent, *bounds)


@update_call.on(ParallelEquation)
def _parallel(
    neuron: ParallelEquation, current: Array, state: Array, sent: Array, bounds: tuple[int, int],
    *, carry: bool, lanes: int, numbers: Array | None, origin: int = 0,
) -> Bound:  # fmt: skip
    kernel = parallel.parallel_kernel(neuron.fire, lanes > 0)
    return kernel, (current, neuron.weight, neuron.bias, sent, *bounds)


def sent_dtype(edge: Edge) -> npt.DTypeLike:
    """The dtype of a map of what travels on an edge."""
    kind, bound = edge
    analog = np.float32 if bound is None else np.int32
    kinds: dict[EdgeKind, npt.DTypeLike] = {"analog": analog, "signed": np.int8}
    return kinds.get(kind, np.uint8)
