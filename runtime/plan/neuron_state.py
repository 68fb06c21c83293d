"""What a population's neurons keep, what they send, and the kernel call that updates them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, dispatch
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.equations import Equation, NeuronEquation
from soul_deploy.runtime.format import validate
from soul_deploy.runtime.format.validate import Shape
from soul_deploy.runtime.kernels import dynamics, neurons
from soul_deploy.runtime.plan.layer_plan import aligned

Bound = tuple[Callable[..., None], tuple[Any, ...]]
"""A kernel and its arguments."""


@dispatch.operation_table(Equation)
def state_at_rest(neuron: Equation, count: int) -> Array:
    """The state of so many neurons before the first step; the last axis is theirs."""
    raise state_at_rest.unknown(neuron)


@state_at_rest.on(NeuronEquation)
def _membranes(neuron: NeuronEquation, count: int) -> Array:
    v = aligned((count,), np.float32)
    v[:] = neuron.rest
    return v


@state_at_rest.on(DynamicsEquation)
def _variables(neuron: DynamicsEquation, count: int) -> Array:
    state = aligned((len(neuron.start), count), np.float32)
    state[...] = np.array(neuron.start, np.float32)[:, None]
    return state


@dispatch.operation_table(Equation)
def update_numbers(neuron: Equation, shape: Shape, index: Array | None) -> Array | None:
    """What the update of neurons of this shape reads beside the current, made once for all their
    partitions; index: of those that are updated, channel-last, None: all.
    """
    raise update_numbers.unknown(neuron)


update_numbers.on(NeuronEquation)(lambda neuron, shape, index: None)
update_numbers.on(DynamicsEquation)(dynamics.constants_of)


@dispatch.operation_table(Equation)
def update_call(
    neuron: Equation, current: Array, state: Array, sent: Array, bounds: tuple[int, int], *,
    carry: bool, lanes: int, numbers: Array | None,
) -> Bound:  # fmt: skip
    """The kernel that updates the neurons of the columns `bounds`, and its arguments.

    current (T or 1, n), or (n, lanes); state as `state_at_rest`; sent (T, n), written; numbers as
    `update_numbers`.
    """
    raise update_call.unknown(neuron)


@update_call.on(NeuronEquation)
def _leaky(
    neuron: NeuronEquation, current: Array, state: Array, sent: Array, bounds: tuple[int, int], *,
    carry: bool, lanes: int, numbers: Array | None,
) -> Bound:  # fmt: skip
    scratch = [aligned((lanes, neurons.LANE_BLOCK), np.float32)] if lanes else []
    given = current, *neurons.update_constants(neuron), carry, state, sent, *bounds, *scratch
    return neurons.update_of(neuron, lanes), given


@update_call.on(DynamicsEquation)
def _dynamics(
    neuron: DynamicsEquation, current: Array, state: Array, sent: Array, bounds: tuple[int, int],
    *, carry: bool, lanes: int, numbers: Array | None,
) -> Bound:  # fmt: skip
    assert numbers is not None
    limits = np.float32(neuron.low), np.float32(neuron.high)
    start, wide = np.array(neuron.start, np.float32), numbers.shape[2] > 1
    kernel = dynamics.dynamics_kernel(neuron.family, neuron.send, lanes > 0, wide)
    return kernel, (current, numbers, *limits, start, carry, state, sent, *bounds)


def sent_dtype(kind: validate.EdgeKind) -> npt.DTypeLike:
    """The dtype of a map of what travels on an edge of this kind."""
    kinds: dict[str, npt.DTypeLike] = {"analog": np.float32, "signed": np.int8}
    return kinds.get(kind, np.uint8)
