"""What a channel does when nothing live feeds it: its current is a constant, its spikes a pattern.

Decided by running the network's own operations on that constant, so the answer is the network's to
the last bit (batch norm of 0 is beta - gamma · mean / sqrt(var), not beta). Channels that spike at
every step are turned into their consumers' bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base import Array, brief, dispatch
from soul_deploy.ir import Convolution, Linear, Merge, Node, Projection, Scatter, no_entry
from soul_deploy.model.model import Model
from soul_deploy.nn.operations import unweighed
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.equations import Equation

FOREVER = 4096  # steps within which a membrane that will never fire comes to rest


@brief
@dataclass(frozen=True)
class ConstantResponse:
    """Neurons on a constant current, one per channel.

    pattern  int16 (T, C): what they send
    silent   bool (C,): proven never to spike, however long it runs
    always   bool (C,): proven to send 1 at every step, however long it runs
    """

    pattern: Array
    silent: Array
    always: Array


@brief
@dataclass(frozen=True)
class Known:
    """What is known of a node's output, by channel.

    value    float32 (C,): what it is at every step and position; NaN where that depends on the
             input, the step or the position
    lasting  bool (C,): `value` holds for any number of steps
    """

    value: Array
    lasting: Array

    @property
    def zero(self) -> Array:
        """bool (C,): always 0."""
        flags: Array = self.value == 0
        return flags

    def averaged(self) -> "Known":
        """Behind an average: a mean of equal values can round elsewhere."""
        return Known(np.where(self.zero, self.value, np.float32(np.nan)), self.lasting)

    def scattered(self, node: Scatter) -> "Known":
        """Behind a scatter: its other channels are 0."""
        wide = Known(np.zeros(node.channels, np.float32), np.ones(node.channels, bool))
        wide.value[list(node.index)] = self.value
        wide.lasting[list(node.index)] = self.lasting
        return wide

    @staticmethod
    def nothing(channels: int) -> "Known":
        """No channel is constant."""
        return Known(np.full(channels, np.nan, np.float32), np.ones(channels, bool))


def known_behind(node: Merge, inputs: Sequence[Known]) -> Known:
    """What is known behind a merge."""
    value, lasting = inputs[0].value, inputs[0].lasting
    if node.function == "iand":  # identity · (1 - branch)
        return Known(np.where(value == 0, value, np.float32(np.nan)), lasting)
    if node.function == "add":
        for known in inputs[1:]:
            value, lasting = value + known.value, lasting & known.lasting
        return Known(value, lasting)
    zero = np.any([known.zero for known in inputs], axis=0)
    proven = np.any([known.zero & known.lasting for known in inputs], axis=0)
    return Known(np.where(zero, np.float32(0), np.float32(np.nan)), proven | ~zero)


def masked_current(projection: Projection, on: Array | None) -> Known:
    """What a channel mask (C,) alone says of a projection's current: 0, whatever its weights."""
    known = Known.nothing(projection.out_channels)
    if on is not None:
        known.value[~on] = 0
    return known


@torch.no_grad()
def constant_current(projection: Projection, state: Mapping[str, Array], on: Array | None) -> Array:
    """The current (C,) of a projection whose inputs are all 0: bias, batch norm and mask only.

    on: bool (C,), the channel mask if there is one.
    """
    sides = projection.extent
    bias = state.get(f"{projection.name}.bias")
    current = torch.zeros(1, projection.out_channels, *sides)
    if bias is not None:
        current = current + torch.from_numpy(bias.copy()).reshape(1, -1, *([1] * len(sides)))
    gate = torch.ones(()) if on is None else torch.from_numpy(on.astype(np.float32))
    if projection.norm is not None:
        mean, variance, gamma, beta = (
            torch.from_numpy(state[f"{projection.norm.name}.{part}"].copy())
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        eps = projection.norm.eps
        current = F.batch_norm(current, mean, variance, gamma * gate, beta * gate, eps=eps)
    elif on is not None:
        current = current * gate.reshape(1, -1, *([1] * len(sides)))
    return np.asarray(current.reshape(projection.out_channels, -1)[:, 0].numpy())


def respond(equation: Equation, current: Array, steps: int) -> ConstantResponse:
    """Run neurons on a constant current (C,) for `steps`, and on until nothing moves.

    A membrane that stands still from one step to the next will never move again. A neuron that
    fires and comes back to rest exactly has repeated its first step, and always will.
    """
    equation = by_channel(equation)
    start = tuple(np.full_like(current, value) for value in equation.start)
    state, fired = start, np.zeros(len(current), bool)
    pattern = np.zeros((steps, len(current)), np.int16)
    always = np.zeros(len(current), bool)
    moving = np.ones(len(current), bool)
    for t in range(max(steps, FOREVER)):
        before = state
        sent, state = equation.advance(state, current, t)
        fired |= sent != 0
        if t == 0:
            always = (sent == 1) & _same(state, start)
        if t < steps:
            pattern[t] = sent
        moving = ~_same(state, before)
        if t + 1 >= steps and not (moving & ~fired).any():
            break
    return ConstantResponse(pattern, ~fired & ~moving, always)


def by_channel(equation: Equation) -> Equation:
    """The equation of one neuron of each channel, for arrays (C,)."""
    if not isinstance(equation, DynamicsEquation):
        return equation
    constants = (
        c.reshape(len(c), -1) if isinstance(c, np.ndarray) else c for c in equation.constants
    )
    return replace(equation, constants=tuple(constants))


def _same(state: tuple[Array, ...], other: tuple[Array, ...]) -> Array:
    """bool (C,): whether all variables are equal."""
    same: Array = np.all([a == b for a, b in zip(state, other, strict=True)], axis=0)
    return same


@torch.no_grad()
def foldable(model: Model, name: str, channels: Array) -> Array:
    """Which of the `channels` (n,) of population `name`, if they spike at every step, are a scalar.

    bool (n,). A channel is one if a single projection reads it and each of that projection's
    windows sees it whole, so that every output position receives the same sum. Found by sending its
    map of spikes, ones where no mask is, through the poolings and counting at each position what
    arrives: padding, and masked neurons, that a window meets arrive as less than its taps.
    """
    graph, spikes = model.graph, model.neuron_masks.get(name)
    maps = torch.ones(len(channels), 1, *graph.shapes[name][1:], dtype=torch.float64)
    if spikes is not None:
        maps *= torch.from_numpy(spikes[channels].astype(np.float64)).reshape(maps.shape)
    node = graph[name]
    while len(channels) and len(graph.consumers[node.name]) == 1:
        node = graph[graph.consumers[node.name][0]]
        if node.projects:
            return meets_ones(node, maps)
        if node.fires or not node.keeps_channels or node.arity != 1:
            break
        maps = unweighed(node, maps)
    return np.zeros(len(channels), bool)


@dispatch.operation_table(Projection)
def meets_ones(node: Node, maps: Tensor) -> Array:
    """bool (n,): whether each window of `node` holds ones only; maps (n, 1, H, W) or (n, inputs).

    No value is above 1, so a window's sum is its number of taps only if all of them are 1.
    """
    raise no_entry(node, "folding of constant channels")


@meets_ones.on(Convolution)
def _convolution(node: Convolution, maps: Tensor) -> Array:
    kernel = maps.new_ones(1, 1, *node.kernel)
    sums = F.conv2d(maps, kernel, None, node.stride, node.padding, node.dilation)
    return np.asarray((sums == kernel.numel()).flatten(1).all(1))


@meets_ones.on(Linear)
def _linear(node: Linear, maps: Tensor) -> Array:
    return np.asarray((maps == 1).flatten(1).all(1))
