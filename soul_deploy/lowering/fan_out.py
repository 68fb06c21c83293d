"""The layers that a network's operations are counted by, and the fan-out of each neuron.

The fan-out map of a projection holds, for each presynaptic neuron, how many nonzero synapses reach
a target inside the output. All convolutions here are of zeros and ones in float64 on the CPU, so
every sum is an exact integer below 2^53. Definitions: docs/counting.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch
from soul_deploy.lowering import linear_operators


class Counted:
    """What operations are counted by; the family of the tables over such entries.

    source: the node that feeds it, population: the neurons that are counted with it; None: none.
    """

    name: str
    if TYPE_CHECKING:  # a field of one class is a property of another

        @property
        def source(self) -> str | None: ...
        @property
        def population(self) -> str | None: ...

    @property
    def layer(self) -> "CountedLayer | None":
        """The entry, if it is a projection's or the readout's."""
        return None


@brief
@dataclass(frozen=True)
class CountedLayer(Counted):
    """A projection (or the readout) with what feeds it, and the population that it alone feeds.

    live: bool of the operator's output shape; targets that are masked receive nothing.
    """

    name: str
    linear: linear_operators.LinearProjection
    edge: ir.Edge
    population: str | None
    live: Array | None = None

    @property
    def layer(self) -> "CountedLayer":
        return self

    @property
    def source(self) -> str:
        return self.linear.source

    @cached_property
    def fanout(self) -> Array:
        """Synapses onto live targets from each input (see `fanout`)."""
        return fanout(self.linear.operator, self.live)

    def arriving(self, values: Tensor) -> Tensor:
        """What reaches it at each step, of the values (T, B, ...) that its source holds."""
        return values

    @property
    def targets(self) -> int:
        """How many live targets there are."""
        return self.linear.operator.targets(self.live)

    @property
    def biased(self) -> int:
        """How many live targets have a bias that is not 0."""
        return self.linear.operator.biased(self.live)


@brief
@dataclass(frozen=True)
class CountedFeedback(CountedLayer):
    """A population's feedback: what arrives are its own spikes of the step before."""

    def arriving(self, values: Tensor) -> Tensor:
        return step_before(values)


def step_before(values: Tensor) -> Tensor:
    """Values (T, B, ...) one step later, 0 at the first."""
    return torch.cat([torch.zeros_like(values[:1]), values[:-1]])


@dataclass(frozen=True)
class CountedPooling(Counted):
    """A max pooling: what feeds it, and its windows."""

    name: str
    source: str
    kernel: ir.Pair
    stride: ir.Pair
    padding: ir.Pair
    population: ClassVar[None] = None


@brief
@dataclass(frozen=True)
class CountedPopulation(Counted):
    """A population without a projection of its own: a merge of currents feeds it, for example.

    shape: of its current. live: bool of that shape, or None: all neurons.
    """

    name: str
    shape: ir.Shape
    live: Array | None = None
    source: ClassVar[None] = None

    @property
    def population(self) -> str:
        return self.name


def needed_values(entry: Counted) -> tuple[str, ...]:
    """The nodes whose values an entry is counted from: what feeds it, its population."""
    return tuple(name for name in (entry.source, entry.population) if name is not None)


def population_behind(graph: ir.SpikingGraph, projection: str) -> str | None:
    """The population that a projection feeds, if it feeds nothing else: one layer with it.

    With a feedback, the population's neurons belong to that; what feeds it stands apart, since it
    is known for all steps before the first spike is.
    """
    consumers = graph.consumers[projection]
    if len(consumers) != 1 or not graph[consumers[0]].fires:
        return None
    back = graph[consumers[0]].feedback
    return consumers[0] if back is None or back.name == projection else None


def live_targets(
    graph: ir.SpikingGraph, neuron_masks: Mapping[str, Array], current: str
) -> Array | None:
    """Where a current reaches an unmasked neuron, directly or through merges; None: everywhere.

    bool of the current's shape. What else reads a current reads all of it.
    """
    shape = graph.shapes[current]
    live = np.zeros(shape, np.bool_)
    for name in graph.consumers[current]:
        below = targets_of(graph[name], graph, neuron_masks)
        if below is None:
            return None
        live |= below[: shape[0]]  # constant-pattern channels have no current
    return None if live.all() else live


@dispatch.operation_table(ir.Node)
def targets_of(
    node: ir.Node, graph: ir.SpikingGraph, neuron_masks: Mapping[str, Array]
) -> Array | None:
    """Where a current that a node reads reaches an unmasked neuron; None: everywhere."""
    raise ir.no_entry(node, "the search for live targets")


targets_of.on(ir.Population)(lambda node, graph, neuron_masks: neuron_masks.get(node.name))
targets_of.on(ir.Merge)(lambda node, graph, masks: live_targets(graph, masks, node.name))
targets_of.on(
    *(ir.Input, ir.Projection, ir.Pool, ir.AdaptiveAvgPool, ir.Flatten, ir.Scatter, ir.Readout),
    *(ir.Scale, ir.ChannelNorm),
)(lambda *_: None)


@dispatch.operation_table(linear_operators.LinearOperator)
def fanout(operator: linear_operators.LinearOperator, live: Array | None = None) -> Array:
    """Synapses onto live targets from each input: int64 of the input's shape.

    For a readout that sums over space first, (C,). live: bool of the output's shape; None: all.
    """
    raise fanout.unknown(operator)


@fanout.on(linear_operators.ReadoutOperator)
def _readout_fanout(operator: linear_operators.ReadoutOperator, live: Array | None = None) -> Array:
    shape = operator.in_shape[:1] if operator.space else operator.in_shape
    if operator.weight is None:
        return np.zeros(shape, np.int64)
    return _columns(operator.weight, shape)


@fanout.on(linear_operators.MatrixOperator)
def _matrix_fanout(operator: linear_operators.MatrixOperator, live: Array | None = None) -> Array:
    weight = operator.weight
    return _columns(weight if live is None else weight[live.reshape(-1)], operator.in_shape)


def _columns(weight: Array, shape: ir.Shape) -> Array:
    counts: Array = (weight != 0).sum(axis=0, dtype=np.int64)
    return counts.reshape(shape)


def nonzero(weight: Array) -> Tensor:
    return torch.from_numpy((weight != 0).astype(np.float64))


@fanout.on(linear_operators.ConvOperator)
def _conv_fanout(op: linear_operators.ConvOperator, live: Array | None = None) -> Array:
    """Transposed convolution of ones: how many live outputs each input position reaches."""
    targets = torch.ones(1, *op.out_shape, dtype=torch.float64)
    if live is not None:
        targets = torch.from_numpy(live.astype(np.float64))[None]
    full = F.conv_transpose2d(
        targets, nonzero(op.weight), None, op.stride, 0, 0, op.groups, op.dilation
    )[0]
    result = torch.zeros(op.in_shape, dtype=torch.int64)
    height, width = (min(op.reach[i], op.in_shape[1 + i]) for i in (0, 1))
    inside = full[:, op.padding[0] :, op.padding[1] :][:, :height, :width]
    result[:, : inside.shape[1], : inside.shape[2]] = inside.round().to(torch.int64)
    return result.numpy()


@dispatch.operation_table(linear_operators.Operator)
def arrivals(op: linear_operators.Operator, events: Tensor) -> Tensor:
    """How many events reach each target: events (N, *in_shape) of 0/1 -> (N, *out_shape)."""
    raise arrivals.unknown(op)


@arrivals.on(linear_operators.MatrixOperator)
def _matrix_arrivals(op: linear_operators.MatrixOperator, events: Tensor) -> Tensor:
    return events.flatten(1).double() @ nonzero(op.weight).t()


@arrivals.on(linear_operators.ConvOperator)
def _conv_arrivals(op: linear_operators.ConvOperator, events: Tensor) -> Tensor:
    x, weight = padded(op, events.double()), nonzero(op.weight)
    return F.conv2d(x, weight, None, op.stride, 0, op.dilation, op.groups)


def padded(op: linear_operators.ConvOperator, values: Tensor) -> Tensor:
    """(N, *in_shape) with the zeros around that the windows of all outputs meet, and no more."""
    x = values[:, :, : op.reach[0], : op.reach[1]]
    needed = [0, 0]
    padding: list[int] = []
    for axis in (0, 1):
        extent = op.dilation[axis] * (op.weight.shape[2 + axis] - 1) + 1
        needed[axis] = (op.out_shape[1 + axis] - 1) * op.stride[axis] + extent
        before = op.padding[axis]
        after = max(needed[axis] - before - x.shape[2 + axis], 0)
        padding = [before, after, *padding]
    # The last window may end before the map.
    return F.pad(x, padding)[:, :, : needed[0], : needed[1]]
