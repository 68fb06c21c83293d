"""Average pooling and constants behind a current become part of the projection before them.

What stands in front of a projection is composed into it where that is lowered
(linear_operators.py). Here it is what stands in front of a neuron, a merge, a max pooling or a
scattering, where no projection follows:

- Behind a projection's current that nothing else reads, the projection's own weights and bias are
  multiplied or pooled: a convolution with kernel k and stride s, then the mean of w positions v
  apart, is one with kernel k + s · (w - 1) and stride s · v. Without padding of the pooling that is
  the same linear operator, borders and all.
- Elsewhere (spikes, a sum of currents, a pooling with padding, a current that something else reads)
  it becomes a projection of its own, channel by channel, called as the operation is.

The composed graph has the populations, merges and poolings of the original under their names, and
whatever feeds a projection holds the same values in both.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch
from soul_deploy.lowering import pool_windows, scaled_values
from soul_deploy.lowering.fold_batch_norm import ChannelConstants, DeployedWeights
from soul_deploy.lowering.linear_operators import MAX_ELEMENTS, Rescaling
from soul_deploy.lowering.rescaling import ShiftedScale


@brief
@dataclass(frozen=True)
class ComposedForm:
    """A graph in which projections or the readout follow on all that is composed; its weights and
    constants, by node name.
    """

    graph: ir.SpikingGraph
    synapses: Mapping[str, DeployedWeights]
    rescaling: Rescaling


@brief
@dataclass(frozen=True)
class Current:
    """A projection with weight and bias in float64 while operations are composed into it."""

    node: ir.Projection
    weight: Array
    bias: Array | None

    def rounded(self) -> DeployedWeights:
        bias = None if self.bias is None else self.bias.astype(np.float32)
        return DeployedWeights(self.weight.astype(np.float32), bias)


def compose(
    graph: ir.SpikingGraph, synapses: Mapping[str, DeployedWeights], rescaling: Rescaling
) -> ComposedForm | None:
    """The composed form; None if the graph is one already."""
    given = graph
    graph, rescaling = scaled_values.put_before(graph, rescaling)
    shifted = {
        node.name: ShiftedScale(node.name, node.inputs, None)
        for node in graph.of_type(ir.ChannelNorm)
        if not _seen_by_padding(graph, node)
    }
    graph = graph.with_nodes(shifted) if shifted else graph
    composing = _Composing(graph, dict(rescaling), dict(synapses))
    for node in reversed(_loose(graph)):
        if node.name not in composing.gone:
            composing.take(node)
    if not composing.changed and graph is given:
        return None
    made = ir.SpikingGraph(tuple(composing.nodes()), graph.time_steps)
    return ComposedForm(made, composing.synapses, composing.rescaling)


def _loose(graph: ir.SpikingGraph) -> list[ir.Node]:
    """Nodes to compose whose values something reads that they cannot be composed into."""
    return [
        node
        for node in graph.nodes
        if isinstance(node, ir.ChannelNorm)
        or (node.composable and not all(map(graph.takes_composed, graph.consumers[node.name])))
    ]


def _seen_by_padding(graph: ir.SpikingGraph, node: ir.Node) -> bool:
    """Whether zeros around the map stand among a node's values where something weighs them."""
    readers = [graph[name] for name in graph.consumers[node.name]]
    return any(r.pads or (r.composable and _seen_by_padding(graph, r)) for r in readers)


class _Composing:
    """absorbed: composed node -> the projection that it became part of; gone: nodes that the
    composed graph lacks; changed: those that it has otherwise; copies: those that projections read
    on, beside the projection that took their name.
    """

    def __init__(
        self,
        graph: ir.SpikingGraph,
        rescaling: dict[str, ChannelConstants],
        synapses: dict[str, DeployedWeights],
    ) -> None:
        self.graph, self.rescaling, self.synapses = graph, rescaling, synapses
        self.absorbed: dict[str, str] = {}
        self.gone: set[str] = set()
        self.changed: dict[str, ir.Node] = {}
        self.copies: dict[str, ir.Node] = {}

    def nodes(self) -> Iterator[ir.Node]:
        """The composed graph's."""
        copied = {name: copy.name for name, copy in self.copies.items()}
        for node in self.graph.nodes:
            names = copied if self.graph.takes_composed(node.name) else self.absorbed
            inputs = tuple(names.get(name, name) for name in node.inputs)
            if node.name not in self.gone:
                yield replace(self.changed.get(node.name, node), inputs=inputs)
            if node.name in self.copies:
                yield replace(self.copies[node.name], inputs=inputs)

    def take(self, node: ir.Node) -> None:
        """Compose `node` into the projection before it, or make it a projection of its own."""
        chain = [node]
        while self.graph[chain[-1].inputs[0]].composable:
            chain.append(self.graph[chain[-1].inputs[0]])
        source = self.graph[chain[-1].inputs[0]]
        if self._alone(source, chain):
            current = self._compose_all(source, chain)
            if current is not None:
                self.changed[source.name] = current.node
                self.synapses[source.name] = current.rounded()
                self.absorbed[node.name] = source.name
                self.gone |= {inner.name for inner in chain}
                return
        self._stand(node)

    def _alone(self, source: ir.Node, chain: list[ir.Node]) -> bool:
        """Whether a projection's current goes through `chain` and nowhere else, to no projection.

        What reads the end must be a neuron, a merge or a scattering: the operations of a projection
        are counted from the value that it reads, by its name, and the current is called as the
        projection is. Those of a max pooling are too, but only by what is not 0.
        """
        graph = self.graph
        way = [node.name for node in reversed(chain)]
        readers = [graph.consumers[name] for name in (source.name, *way[:-1])]
        ends = graph.consumers[way[-1]]
        moved = any(type(node) is not ir.Scale for node in chain)
        counted = (
            graph.takes_composed(name) or (moved and isinstance(graph[name], ir.MaxPool))
            for name in ends
        )
        plain = not any(counted)
        return source.projects and readers == [(name,) for name in way] and plain

    def _compose_all(self, source: ir.Node, chain: list[ir.Node]) -> Current | None:
        """The projection with all of the chain in it; None where something does not fit."""
        assert isinstance(source, ir.Projection)
        synapses = self.synapses[source.name]
        bias = None if synapses.bias is None else synapses.bias.astype(np.float64)
        current: Current | None = Current(source, synapses.weight.astype(np.float64), bias)
        for node in reversed(chain):
            if current is not None:
                shape = self.graph.shapes[node.inputs[0]]
                current = compose_ahead(node, current, shape, self.rescaling.get(node.name))
        return current

    def _stand(self, node: ir.Node) -> None:
        """A projection of its own; what is composed into others stays beside it."""
        shape = self.graph.shapes[node.inputs[0]]
        found = as_projection(node, shape, self.rescaling.get(node.name))
        if found is not None:
            self.changed[node.name] = found.node
            self.synapses[node.name] = found.rounded()
            readers = self.graph.consumers[node.name]
            if node.composable and any(map(self.graph.takes_composed, readers)):
                copy = replace(node, name=f"{node.name}.composed")
                self.copies[node.name] = copy
                if node.name in self.rescaling:
                    self.rescaling[copy.name] = self.rescaling[node.name]


@dispatch.operation_table(ir.Node)
def compose_ahead(
    node: ir.Node, current: Current, shape: ir.Shape, constants: ChannelConstants | None
) -> Current | None:
    """The projection that gives a node's output; None where there is none of its kind.

    shape: of the current, which is the node's input.
    """
    raise ir.no_entry(node, "the composition of currents")


NEVER = (ir.Input, ir.Projection, ir.Population, ir.MaxPool, ir.Merge, ir.Scatter, ir.Readout)
compose_ahead.on(*NEVER, ir.Flatten)(lambda *_: None)


@compose_ahead.on(ir.Scale, ir.ChannelNorm)
def _scaled(
    node: ir.Node, current: Current, shape: ir.Shape, constants: ChannelConstants | None
) -> Current:
    assert constants is not None, node.name
    scale, weight = constants.scale, current.weight
    bias = None if current.bias is None else current.bias * scale
    if constants.shift is not None:
        bias = constants.shift if bias is None else bias + constants.shift
    rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return replace(current, weight=weight * rows, bias=bias)


@compose_ahead.on(ir.AvgPool)
def _pooled(
    node: ir.AvgPool, current: Current, shape: ir.Shape, constants: object
) -> Current | None:
    if node.padding != (0, 0):  # whose zeros are no currents
        return None
    return _mean(current, node.kernel, node.stride)


@compose_ahead.on(ir.AdaptiveAvgPool)
def _adaptive(
    node: ir.AdaptiveAvgPool, current: Current, shape: ir.Shape, constants: object
) -> Current | None:
    window = pool_windows.even_window(node, shape)
    return None if window is None else _mean(current, window, window)


def _mean(current: Current, window: ir.Pair, apart: ir.Pair) -> Current | None:
    """The mean of `window` positions, `apart` from one another, of a convolution's current.

    The mean of a bias is the bias.
    """
    conv = current.node
    if not isinstance(conv, ir.Convolution):
        return None
    kernel = (_reach(conv, 0, window), _reach(conv, 1, window))
    if current.weight[:, :, 0, 0].size * math.prod(kernel) > MAX_ELEMENTS:
        return None
    weight = np.zeros((*current.weight.shape[:2], *kernel))
    (height, width), (dh, dw), (sh, sw) = conv.extent, conv.dilation, conv.stride
    for y in range(0, window[0] * sh, sh):
        for x in range(0, window[1] * sw, sw):
            weight[:, :, y : y + height : dh, x : x + width : dw] += current.weight
    node = replace(conv, kernel=kernel, stride=(sh * apart[0], sw * apart[1]), dilation=(1, 1))
    return Current(node, weight / math.prod(window), current.bias)


def _reach(conv: ir.Convolution, axis: int, window: ir.Pair) -> int:
    """The side of the input that a window of a convolution's outputs sees."""
    return conv.extent[axis] + conv.stride[axis] * (window[axis] - 1)


@dispatch.operation_table(ir.Node)
def as_projection(
    node: ir.Node, shape: ir.Shape, constants: ChannelConstants | None
) -> Current | None:
    """A projection of its own, channel by channel, that does what a node does to an input of
    `shape`; None where there is none.
    """
    raise ir.no_entry(node, "the composition of currents")


as_projection.on(*NEVER, ir.Flatten)(lambda *_: None)


@as_projection.on(ir.Scale, ir.ChannelNorm)
def _scaling(node: ir.Scale, shape: ir.Shape, constants: ChannelConstants | None) -> Current | None:
    assert constants is not None, node.name
    if len(shape) == 3:
        weight = constants.scale.reshape(-1, 1, 1, 1)
        return _by_channel(node, weight, (1, 1), (0, 0), constants.shift)
    features, shift = shape[0], constants.shift
    if features * features > MAX_ELEMENTS:
        return None
    made = ir.Linear(node.name, node.inputs, shift is not None, None, features, features)
    return Current(made, np.diag(constants.scale), shift)


@as_projection.on(ir.AvgPool)
def _pooling(node: ir.AvgPool, shape: ir.Shape, constants: object) -> Current:
    shares = np.full((shape[0], 1, *node.kernel), 1 / math.prod(node.kernel))
    return _by_channel(node, shares, node.stride, node.padding)


@as_projection.on(ir.AdaptiveAvgPool)
def _adapting(node: ir.AdaptiveAvgPool, shape: ir.Shape, constants: object) -> Current | None:
    window = pool_windows.even_window(node, shape)
    if window is None:
        return None
    shares = np.full((shape[0], 1, *window), 1 / math.prod(window))
    return _by_channel(node, shares, window, (0, 0))


def _by_channel(
    node: ir.Node, weight: Array, stride: ir.Pair, padding: ir.Pair, bias: Array | None = None
) -> Current:
    """A convolution with one group a channel; weight (C, 1, kh, kw)."""
    channels, _, *kernel = weight.shape
    made = ir.Convolution(
        node.name, node.inputs, bias is not None, None, channels, channels,
        (kernel[0], kernel[1]), stride, padding, (1, 1), channels,
    )  # fmt: skip
    return Current(made, weight, bias)
