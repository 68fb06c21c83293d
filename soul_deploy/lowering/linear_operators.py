"""Linear-operator lowering: average pooling and flattening go into the projection's operator.

Average pooling is linear, so pooling followed by a projection is one projection onto the spikes
before the pooling. The edge stays a spike edge: what arrives are events, not fractions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors, reduction
from soul_deploy.lowering import pool_windows
from soul_deploy.lowering.fold_batch_norm import ChannelConstants, DeployedWeights, with_shift

Rescaling = Mapping[str, ChannelConstants]  # of operations that rescale their channels, by name
MAX_ELEMENTS = 1 << 28  # of a composed dense matrix: 1 GiB of float32


class LinearOperator:
    """What operators of projections and of a readout have in common; the family of the tables over
    operators. Their fields are described there.
    """

    weight: Array | None
    bias: Array | None
    in_shape: ir.Shape

    if TYPE_CHECKING:  # a field of one class is a property of another

        @property
        def out_shape(self) -> ir.Shape:
            """Shape of what leaves."""
            raise NotImplementedError

    @property
    def readout(self) -> "ReadoutOperator | None":
        """The operator, if it is a readout's."""
        return None

    @property
    def most_targets(self) -> int:
        """Targets that one input has at most."""
        return math.prod(self.out_shape)

    def targets(self, live: Array | None) -> int:
        """How many targets there are; live: bool of the output's shape, None: all."""
        return math.prod(self.out_shape) if live is None else int(live.sum())

    def biased(self, live: Array | None) -> int:
        """How many targets have a bias that is not 0; as `targets`."""
        if self.bias is None:
            return 0
        sides = [1] * (len(self.out_shape) - 1)
        biased = np.broadcast_to((self.bias != 0).reshape(-1, *sides), self.out_shape)
        return int((biased if live is None else biased & live).sum())


class Operator(LinearOperator):
    """The operator of a projection."""

    weight: Array


@brief
@dataclass(frozen=True)
class ConvOperator(Operator):
    """A convolution with zero padding whose output size is given, not derived.

    weight (C_out, C_in / groups, kh, kw) and bias (C_out,) or None, float32. Inputs at or beyond
    `reach` (rows, columns) contribute nothing: average pooling drops an incomplete last window.
    Output (o, y, x) sees input row `y * stride - padding + k * dilation`, columns alike.
    """

    weight: Array
    bias: Array | None
    stride: ir.Pair
    padding: ir.Pair
    dilation: ir.Pair
    groups: int
    in_shape: ir.Shape
    out_shape: ir.Shape
    reach: ir.Pair

    @property
    def most_targets(self) -> int:
        out, _, height, width = self.weight.shape
        return int(out // self.groups * height * width)


@brief
@dataclass(frozen=True)
class MatrixOperator(Operator):
    """weight (n_out, n_in) float32 on the channel-major flattened input, bias (channels,) or None.

    Output n belongs to channel n // (n_out / channels).
    """

    weight: Array
    bias: Array | None
    in_shape: ir.Shape
    out_shape: ir.Shape


@brief
@dataclass(frozen=True)
class ReadoutOperator(LinearOperator):
    """Class scores from spikes counted over time or step by step: scale · (weight @ counts) + bias.

    `space`: the counts are summed over H and W first, so that weight is (classes, C); otherwise
    weight is (classes, n_in) on the channel-major flattened counts. Without weight, `votes`
    neighbouring counts are summed per class. weighing: of which steps (base/reduction.py).
    charged: neurons that these scores charge, one a class, or 0.
    """

    weight: Array | None
    votes: int
    bias: Array | None
    scale: float
    space: bool
    in_shape: ir.Shape
    weighing: reduction.Weighing = "sum"
    charged: int = 0

    @property
    def out_shape(self) -> ir.Shape:
        sums = math.prod(self.in_shape[:1] if self.space else self.in_shape)
        return (sums // self.votes if self.weight is None else len(self.weight),)

    @property
    def readout(self) -> "ReadoutOperator":
        return self

    @property
    def counts_spikes(self) -> bool:
        """Whether it weighs sums of spikes, over time or space; else the spikes themselves."""
        return self.space or self.weighing == "sum"

    def targets(self, live: Array | None) -> int:
        """Votes are no synapses: without weight there are none. Scores are never masked."""
        return 0 if self.weight is None else len(self.weight)

    def biased(self, live: Array | None) -> int:
        return super().biased(None)


@brief
@dataclass(frozen=True)
class LinearProjection:
    """The operator of a projection or readout on `source`, the last node that holds values."""

    source: str
    operator: LinearOperator


def lower_projection(
    graph: ir.SpikingGraph,
    folded: Mapping[str, DeployedWeights],
    name: str,
    rescaling: Rescaling = MappingProxyType({}),
) -> LinearProjection:
    """The linear operator from a projection's (or readout's) source to its output.

    The source is the nearest node before it that is no average pooling, no flattening and no
    multiplication by constants. Raises LimitError for a composed matrix that is too large.
    """
    source, between = walk_back(graph, name)
    if name == graph.readout.name:
        return LinearProjection(source, _lower_readout(graph, folded, rescaling, between))
    operator = base_operator(graph[name], graph, folded[name])
    return LinearProjection(source, _behind_all(operator, graph, rescaling, between, name))


def walk_back(graph: ir.SpikingGraph, name: str) -> tuple[str, list[ir.Node]]:
    """The source's name, and the composable nodes between, nearest to node `name` first."""
    between: list[ir.Node] = []
    current = graph[graph[name].inputs[0]]
    while current.composable:
        between.append(current)
        current = graph[current.inputs[0]]
    return current.name, between


@dispatch.operation_table(ir.Projection)
def base_operator(node: ir.Node, graph: ir.SpikingGraph, synapses: DeployedWeights) -> Operator:
    """A projection's operator on its own input, without the pooling before it."""
    raise ir.no_entry(node, "linear-operator lowering")


@base_operator.on(ir.Convolution)
def _convolution(
    node: ir.Convolution, graph: ir.SpikingGraph, synapses: DeployedWeights
) -> ConvOperator:
    in_shape, out_shape = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    geometry = node.stride, node.padding, node.dilation, node.groups
    reach = in_shape[1], in_shape[2]
    return ConvOperator(synapses.weight, synapses.bias, *geometry, in_shape, out_shape, reach)


@base_operator.on(ir.Linear)
def _linear(node: ir.Linear, graph: ir.SpikingGraph, synapses: DeployedWeights) -> MatrixOperator:
    shapes = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    return MatrixOperator(synapses.weight, synapses.bias, *shapes)


def _behind_all(
    operator: Operator, graph: ir.SpikingGraph, rescaling: Rescaling, between: list[ir.Node],
    name: str,
) -> Operator:  # fmt: skip
    for node in between:
        constants = rescaling.get(node.name)
        operator = compose_behind(node, operator, graph.shapes[node.inputs[0]], name, constants)
    return operator


@dispatch.operation_table(ir.Node)
def compose_behind(
    node: ir.Node, operator: Operator, in_shape: ir.Shape, name: str,
    constants: ChannelConstants | None = None,
) -> Operator:  # fmt: skip
    """The operator that takes the input of a composable node instead of its output.

    name: of the projection, for messages. constants: of a node that rescales its channels.
    """
    raise ir.no_entry(node, "linear-operator lowering")


compose_behind.refuse(
    *(ir.Input, ir.Projection, ir.Population, ir.MaxPool, ir.Merge, ir.Scatter, ir.Readout),
    ir.ChannelNorm,
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: {node.op} cannot be composed into a projection"
    ),
)


compose_behind.on(ir.Flatten)(
    lambda node, operator, in_shape, *_: replace(operator, in_shape=in_shape)
)


@compose_behind.on(ir.AvgPool)
def _avg_pool(
    node: ir.AvgPool, operator: Operator, in_shape: ir.Shape, name: str, *_: object
) -> Operator:
    def rows(axis: int) -> Array:
        window = node.kernel[axis], node.stride[axis], node.padding[axis]
        return pool_windows.window_rows(in_shape[1 + axis], *window)

    tiles = node.kernel == node.stride and node.padding == (0, 0)
    return _pooled(operator, node, in_shape, name, node.kernel if tiles else None, rows)


@compose_behind.on(ir.AdaptiveAvgPool)
def _adaptive(
    node: ir.AdaptiveAvgPool, operator: Operator, in_shape: ir.Shape, name: str, *_: object
) -> Operator:
    def rows(axis: int) -> Array:
        return pool_windows.adaptive_rows(in_shape[1 + axis], node.size[axis])

    return _pooled(operator, node, in_shape, name, pool_windows.even_window(node, in_shape), rows)


@dispatch.operation_table(Operator)
def _pooled(
    operator: Operator, node: ir.Node, in_shape: ir.Shape, name: str, window: ir.Pair | None,
    rows: Callable[[int], Array],
) -> Operator:  # fmt: skip
    """window: that tiles the map without overlap or padding, if one does."""
    raise _pooled.unknown(operator)


@_pooled.on(ConvOperator)
def _pooled_convolution(
    operator: ConvOperator, node: ir.Node, in_shape: ir.Shape, name: str, window: ir.Pair | None,
    rows: Callable[[int], Array],
) -> Operator:  # fmt: skip
    if window is not None:
        weight = partial(pool_windows.spread, operator.weight)
        return convolution_behind_tiles(operator, window, in_shape, name, weight)
    return _pooled_matrix(as_matrix(operator, name), node, in_shape, name, None, rows)


@_pooled.on(MatrixOperator)
def _pooled_matrix(
    operator: MatrixOperator, node: ir.Node, in_shape: ir.Shape, name: str, window: ir.Pair | None,
    rows: Callable[[int], Array],
) -> Operator:  # fmt: skip
    _bounded(name, (math.prod(node.output_shape([in_shape])[1:]), math.prod(in_shape[1:])))
    return matrix_behind_pool(operator, np.kron(rows(0), rows(1)), in_shape, name)


def convolution_behind_tiles(
    operator: ConvOperator, window: ir.Pair, in_shape: ir.Shape, name: str,
    weight: Callable[[ir.Pair, ir.Pair], Array],
) -> ConvOperator:  # fmt: skip
    """Each kernel weight goes to all of the window it pooled; weight: makes that kernel."""
    (wh, ww), (out, inner, *kernel) = window, operator.weight.shape
    spread = pool_windows.spread_kernel(tuple(kernel), window, operator.dilation)
    _bounded(name, (out * inner, math.prod(spread)))
    return replace(
        operator,
        weight=weight(window, operator.dilation),
        stride=(operator.stride[0] * wh, operator.stride[1] * ww),
        padding=(operator.padding[0] * wh, operator.padding[1] * ww),
        dilation=(1, 1),
        in_shape=in_shape,
        reach=(operator.reach[0] * wh, operator.reach[1] * ww),
    )


def as_matrix(operator: ConvOperator, name: str = "convolution") -> MatrixOperator:
    """The convolution as a dense matrix. Raises LimitError beyond MAX_ELEMENTS."""
    channels, height, width = operator.in_shape
    out_channels, rows, columns = operator.out_shape
    _bounded(name, (out_channels * rows * columns, channels * height * width))
    sides = (out_channels, rows, columns, channels, height, width)
    matrix = np.zeros(sides, operator.weight.dtype)
    group_in, group_out = channels // operator.groups, out_channels // operator.groups
    columns_met = [_taps(operator, 1, kw) for kw in range(operator.weight.shape[3])]
    for kh in range(operator.weight.shape[2]):
        y, iy = (side[:, None] for side in _taps(operator, 0, kh))
        for kw, (x, ix) in enumerate(columns_met):
            if not y.size * x.size:
                continue
            for g in range(operator.groups):
                o = slice(g * group_out, (g + 1) * group_out)
                c = slice(g * group_in, (g + 1) * group_in)
                matrix[o, y, x, c, iy, ix] = operator.weight[o, :, kh, kw]
    flat = matrix.reshape(out_channels * rows * columns, -1)
    return MatrixOperator(flat, operator.bias, operator.in_shape, operator.out_shape)


def _taps(operator: ConvOperator, axis: int, k: int) -> tuple[Array, Array]:
    """Output positions, and the input positions that kernel index `k` connects them with."""
    stride, offset = operator.stride[axis], k * operator.dilation[axis] - operator.padding[axis]
    limit = min(operator.reach[axis], operator.in_shape[1 + axis])
    outputs = np.arange(operator.out_shape[1 + axis])
    inputs = outputs * stride + offset
    inside = (inputs >= 0) & (inputs < limit)
    return outputs[inside], inputs[inside]


def matrix_behind_pool(
    operator: MatrixOperator, pool: Array, in_shape: ir.Shape, name: str
) -> MatrixOperator:
    rows, positions = len(operator.weight), in_shape[1] * in_shape[2]
    _bounded(name, (rows, in_shape[0] * positions))
    per_channel = operator.weight.reshape(rows * in_shape[0], pool.shape[0]).astype(np.float64)
    weight = (per_channel @ pool).astype(operator.weight.dtype).reshape(rows, -1)
    return replace(operator, weight=weight, in_shape=in_shape)


def _lower_readout(
    graph: ir.SpikingGraph, folded: Mapping[str, DeployedWeights], rescaling: Rescaling,
    between: list[ir.Node],
) -> ReadoutOperator:  # fmt: skip
    node, shape = graph.readout, graph.shapes[graph.readout.inputs[0]]
    scale = 1.0 / node.divisor(shape, graph.time_steps)
    how = node.weighing, node.classes if node.neuron else 0
    step = scale * reduction.divisor(node.over_time, reduction.together(how[0], graph.time_steps))
    synapses = folded[node.name] if node.linear else None
    weight, bias = (synapses.weight, synapses.bias) if synapses else (None, None)
    space = len(shape) == 3
    if not between:
        return ReadoutOperator(weight, node.votes, bias, scale, space, shape, *how)
    if weight is None:
        _bounded(node.name, (node.classes, node.classes * node.votes))
        dtype = np.float32 if node.unit is None else np.int8
        weight = np.kron(np.eye(node.classes), np.ones(node.votes)).astype(dtype)
    if all(pool.rescales for pool in between):  # sums over space stay sums over space
        plain = MatrixOperator(weight, None, shape[:1], (node.classes,))
        found = _behind_all(plain, graph, rescaling, between, node.name)
        bias = with_shift(bias, found.bias, step * math.prod(shape[1:]))
        return ReadoutOperator(found.weight, 1, bias, scale, space, shape, *how)
    if space:
        _bounded(node.name, (node.classes, math.prod(shape)))
        weight = np.repeat(weight, shape[1] * shape[2], axis=1)
    plain = MatrixOperator(weight, None, shape, (node.classes,))
    found = _behind_all(plain, graph, rescaling, between, node.name)
    bias = with_shift(bias, found.bias, step)
    source = graph.shapes[between[-1].inputs[0]]
    return ReadoutOperator(found.weight, 1, bias, scale, False, source, *how)


def _bounded(name: str, shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > MAX_ELEMENTS:
        raise errors.LimitError(
            f"{name}: composing its average pooling needs a {shape[0]} × {shape[1]} matrix; "
            f"at most {MAX_ELEMENTS} elements are supported. Use a pooling whose windows tile "
            "the map, or a smaller input"
        )
