"""The network whose weights become integers: its lowered form, with nothing between the projections
but sums.

Average poolings whose windows tile the map become sum poolings; other poolings, constants and what
is left of the pixels' mean go into weights and biases, still real numbers here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.lowering import deploy, linear_operators, pool_windows

PIXELS = 255


@brief
@dataclass(frozen=True)
class RealWeights:
    """A projection's or the head's weights for integers that come in, and bias, float64."""

    weight: Array
    bias: Array | None


@brief
@dataclass(frozen=True)
class RealForm:
    """The nodes of the fixed-point network, their numbers still real.

    nodes: without input, neurons and readout of their own kind yet: these are the float network's.
    head: of the readout, if it weighs; scale: what its sums of a step are multiplied by.
    """

    nodes: tuple[ir.Node, ...]
    weights: Mapping[str, RealWeights]
    head: RealWeights | None
    scale: float


@brief
@dataclass(frozen=True)
class InputUnits:
    """What an integer x of the input's channel stands for: x · unit + rest, both (C,)."""

    zero: tuple[int, ...]
    unit: Array
    rest: Array


def input_units(lowered: deploy.Deployed) -> InputUnits:
    """Pixels are taken in 1/255 of what they are normalised by; other integers as they are."""
    info, channels = lowered.model.info, lowered.graph.input.shape[0]
    if info.input_kind == "values":
        raise errors.UnsupportedGraphError(
            f"{lowered.graph.input.name}: the network takes values, which have no unit; "
            "fixed-point networks take images, counts or spikes"
        )
    if info.input_kind != "images":
        return InputUnits((), np.ones(channels), np.zeros(channels))
    if info.normalization is None:
        return InputUnits((), np.full(channels, 1 / PIXELS), np.zeros(channels))
    norm = (info.normalization.mean, info.normalization.std)
    mean, std = (np.broadcast_to(np.array(n, np.float64), channels) for n in norm)
    zero = np.clip(np.rint(PIXELS * mean), 0, PIXELS)
    return InputUnits(
        tuple(map(int, zero)), 1 / (PIXELS * std), (zero - PIXELS * mean) / (PIXELS * std)
    )


def real_form(lowered: deploy.Deployed) -> RealForm:
    """The form of `lowered`, which is composed. Raises UnsupportedGraphError, by name."""
    return _Forming(lowered).form()


class _Forming:
    """aliases: what is read in place of a node that went into weights."""

    def __init__(self, lowered: deploy.Deployed) -> None:
        self.lowered, self.graph = lowered, lowered.graph
        self.units = input_units(lowered)
        self.aliases: dict[str, str] = {}
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, RealWeights] = {}

    def form(self) -> RealForm:
        for node in self.graph.nodes[1:-1]:
            inputs = tuple(self.aliases.get(name, name) for name in node.inputs)
            made = kept_as(node, self.graph)
            if made is None:
                self.aliases[node.name] = inputs[0]
                continue
            if node.feedback is not None:
                raise errors.UnsupportedGraphError(
                    f"{node.name}: neurons that read their own spikes have no form in fixed point"
                )
            if node.projects:
                made = self._projection(node, inputs)
            self.nodes.append(replace(made, inputs=inputs))
        readout, head, scale = self._readout()
        return RealForm((*self._read(readout), readout), self.weights, head, scale)

    def _read(self, readout: ir.Readout) -> list[ir.Node]:
        """The nodes that something reads."""
        found: list[ir.Node] = []
        wanted = set(readout.inputs)
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
                found.append(node)
        return found[::-1]

    def _projection(self, node: ir.Node, inputs: tuple[str, ...]) -> ir.Projection:
        assert isinstance(node, ir.Projection)
        source, between = linear_operators.walk_back(self.graph, node.name)
        if self.graph.edges[source].kind == "analog" and source != self.graph.input.name:
            raise errors.UnsupportedGraphError(
                f"{node.name}: it weighs the real numbers of {source!r}; in fixed point, "
                "projections weigh spikes, sums of spikes, or the input itself"
            )
        folded = self.lowered.synapses[node.name]
        operator = linear_operators.base_operator(node, self.graph, folded)
        exact = operator.weight.astype(np.float64)
        operator = replace(operator, weight=exact)  # type: ignore[type-var]
        area, summed = 1, ""
        for inner in between:  # the nearest first
            if kept_as(inner, self.graph) is None:
                _refuse_behind(inner, summed)
                operator = self._composed(inner, operator, node.name)
            elif isinstance(inner, ir.Pool | ir.AdaptiveAvgPool):
                tile = _tile(inner, self.graph)
                assert tile is not None
                area, summed = area * math.prod(tile), inner.name
        weight, bias = operator.weight / area, operator.bias
        if source == self.graph.input.name:
            weight, bias = self._of_pixels(weight, bias, node, area)
        made = _as_node(node, operator, inputs, bias is not None)
        bias = None if bias is None else bias.astype(np.float64)
        self.weights[node.name] = RealWeights(weight.reshape(made.weight_shape), bias)
        return made

    def _composed(
        self, inner: ir.Node, operator: linear_operators.Operator, name: str
    ) -> linear_operators.Operator:
        """With a node that is no sum pooling in it; the weights of real numbers stay float64."""
        constants = self.lowered.constants.get(inner.name)
        shape = self.graph.shapes[inner.inputs[0]]
        return linear_operators.compose_behind(inner, operator, shape, name, constants)

    def _of_pixels(
        self, weight: Array, bias: Array | None, node: ir.Projection, area: int
    ) -> tuple[Array, Array | None]:
        """Weights for integers of the input, and the bias with what is left of the mean."""
        of_channels = self.units.unit, self.units.rest
        unit, rest = (_beside(values, weight, node) for values in of_channels)
        added = (weight * rest * area).reshape(len(weight), -1).sum(axis=1)
        if added.any():
            bias = added if bias is None else bias + added
        return weight * unit, bias

    def _readout(self) -> tuple[ir.Readout, RealWeights | None, float]:
        node = self.graph.readout
        if node.neuron is not None:
            raise errors.UnsupportedGraphError(
                f"{node.name}: class scores that are membranes have no form in fixed point; read "
                "spikes"
            )
        operator, (source, between) = (
            self.lowered.readout,
            linear_operators.walk_back(self.graph, node.name),
        )
        if self.graph.edges[source].kind == "analog":
            raise errors.UnsupportedGraphError(
                f"{node.name}: it reads analog values from {source!r}; a readout sums spikes"
            )
        divisor = node.divisor(self.graph.shapes[node.inputs[0]], 1)
        inputs = (self.aliases.get(node.inputs[0], node.inputs[0]),)
        made = replace(node, inputs=inputs)
        if between:
            made = replace(made, inputs=self._flat(source, operator), votes=1, linear=True)
        made = replace(made, bias=operator.bias is not None)
        if operator.weight is None:
            return replace(made, unit=1.0), None, 1 / divisor
        bias = None if operator.bias is None else operator.bias.astype(np.float64)
        return made, RealWeights(operator.weight.astype(np.float64), bias), 1 / divisor

    def _flat(self, source: str, operator: linear_operators.ReadoutOperator) -> tuple[str, ...]:
        """What a head reads whose weights hold the poolings in front of it."""
        if operator.space or len(operator.in_shape) == 1:
            return (source,)
        name = f"{self.graph.readout.name}.flat"
        self.nodes.append(ir.Flatten(name, (source,)))
        return (name,)


def _refuse_behind(pool: ir.Node, summed: str) -> None:
    """A pooling goes into the weights that read it, not into those that read sums of it."""
    if summed and isinstance(pool, ir.Pool | ir.AdaptiveAvgPool):
        raise errors.UnsupportedGraphError(
            f"{pool.name}: an average pooling whose windows do not tile the map, in front of one "
            f"({summed}) whose windows do; fixed-point networks have only the second kind there"
        )


def _as_node(
    node: ir.Projection, operator: linear_operators.Operator, inputs: tuple[str, ...], bias: bool
) -> ir.Projection:
    """The projection whose weights are an operator's, of one position where a convolution has
    become a matrix."""
    if not isinstance(operator, linear_operators.MatrixOperator):
        return replace(node, bias=bias, norm=None)
    rows, columns = operator.weight.shape
    if isinstance(node, ir.Linear):
        return ir.Linear(node.name, inputs, bias, None, columns, rows)
    if math.prod(operator.out_shape[1:]) > 1:
        raise errors.UnsupportedGraphError(
            f"{node.name}: the average pooling in front of it has windows that do not tile the "
            "map; behind such a pooling, fixed-point networks have linear layers only, or "
            "convolutions of one position"
        )
    channels, *kernel = operator.in_shape
    sides = (kernel[0], kernel[1])
    return ir.Convolution(node.name, inputs, bias, None, channels, rows, sides)


def _beside(values: Array, weight: Array, node: ir.Projection) -> Array:
    """Values (C,) of the input's channels, beside the weights that read them."""
    if weight.ndim == 2:
        return np.repeat(values, weight.shape[1] // len(values))
    group_of = np.arange(len(weight)) // (len(weight) // node.groups)
    return values.reshape(node.groups, -1)[group_of][:, :, None, None]


@dispatch.operation_table(ir.Node)
def kept_as(node: ir.Node, graph: ir.SpikingGraph) -> ir.Node | None:
    """The node in the fixed-point network; None where it goes into weights."""
    raise ir.no_entry(node, "quantisation")


kept_as.on(
    *(ir.Input, ir.Projection, ir.Population, ir.MaxPool, ir.Flatten, ir.Merge, ir.Scatter),
    *(ir.Readout, ir.SumPool),
)(lambda node, graph: node)
kept_as.on(ir.Scale)(lambda node, graph: None)


@kept_as.on(ir.AvgPool, ir.AdaptiveAvgPool)
def _summed(node: ir.Node, graph: ir.SpikingGraph) -> ir.Node | None:
    tile = _tile(node, graph)
    return None if tile is None else ir.SumPool(node.name, node.inputs, tile, tile)


kept_as.refuse(
    ir.ChannelNorm,
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: a batch norm whose bias padding would see has no form in fixed point"
    ),
)


def _tile(node: ir.Node, graph: ir.SpikingGraph) -> ir.Pair | None:
    """The window of an average pooling, where its windows tile the map."""
    if isinstance(node, ir.AdaptiveAvgPool):
        return pool_windows.even_window(node, graph.shapes[node.inputs[0]])
    assert isinstance(node, ir.AvgPool)
    plain = node.kernel == node.stride and node.padding == (0, 0)
    return node.kernel if plain else None
