"""From graph to linear operators: average pooling and flattening composed into the projection.

Average pooling is linear, so pooling followed by a projection is one projection onto the spikes
before the pooling. The edge stays a spike edge: what arrives are events, not fractions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import LimitError
from soul_deploy.base.files import Array
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    AvgPool,
    Convolution,
    Flatten,
    Linear,
    Node,
    Pair,
    Readout,
    Shape,
    SpikingGraph,
)
from soul_deploy.lowering.fold_batch_norm import Synapses

MAX_ELEMENTS = 1 << 28  # of a composed dense matrix: 1 GiB of float32


@brief
@dataclass(frozen=True)
class ConvOperator:
    """A convolution with zero padding whose output size is given, not derived.

    weight (C_out, C_in / groups, kh, kw) and bias (C_out,) or None, float32. Inputs at or beyond
    `reach` (rows, columns) contribute nothing: average pooling drops an incomplete last window.
    Output (o, y, x) sees input row `y * stride - padding + k * dilation`, columns alike.
    """

    weight: Array
    bias: Array | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_shape: Shape
    out_shape: Shape
    reach: Pair


@brief
@dataclass(frozen=True)
class MatrixOperator:
    """weight (n_out, n_in) float32 on the channel-major flattened input, bias (channels,) or None.

    Output n belongs to channel n // (n_out / channels).
    """

    weight: Array
    bias: Array | None
    in_shape: Shape
    out_shape: Shape


@brief
@dataclass(frozen=True)
class ReadoutOperator:
    """Class scores from spikes summed over time: scale · (weight @ counts) + bias.

    `space`: the counts are summed over H and W first, so that weight is (classes, C); otherwise
    weight is (classes, n_in) on the channel-major flattened counts. Without weight, `votes`
    neighbouring counts are summed per class.
    """

    weight: Array | None
    votes: int
    bias: Array | None
    scale: float
    space: bool
    in_shape: Shape


Operator: TypeAlias = ConvOperator | MatrixOperator
Composable: TypeAlias = AvgPool | AdaptiveAvgPool | Flatten


@brief
@dataclass(frozen=True)
class Composed:
    """What a projection or readout is, seen from `source`, the last node that holds values."""

    source: str
    operator: ConvOperator | MatrixOperator | ReadoutOperator


def compose(graph: SpikingGraph, folded: Mapping[str, Synapses], name: str) -> Composed:
    """The linear operator from a projection's (or readout's) source to its output.

    The source is the nearest node before it that is no average pooling and no flattening. Raises
    LimitError for a composed matrix that is too large.
    """
    node = graph[name]
    source, between = _walk_back(graph, node)
    if isinstance(node, Readout):
        return Composed(source, _compose_readout(graph, node, folded, source, between))
    operator = base_operator(graph, node, folded[name])
    for pool in between:
        operator = _behind(operator, pool, graph.shapes[pool.inputs[0]], name)
    return Composed(source, operator)


def _walk_back(graph: SpikingGraph, node: Node) -> tuple[str, list[Composable]]:
    """The source's name, and the composable nodes between, nearest to `node` first."""
    between: list[Composable] = []
    current = graph[node.inputs[0]]
    while isinstance(current, AvgPool | AdaptiveAvgPool | Flatten):
        between.append(current)
        current = graph[current.inputs[0]]
    return current.name, between


def base_operator(graph: SpikingGraph, node: Node, synapses: Synapses) -> Operator:
    """A projection's operator on its own input, nothing composed into it."""
    in_shape, out_shape = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    if isinstance(node, Convolution):
        return ConvOperator(
            synapses.weight,
            synapses.bias,
            node.stride,
            node.padding,
            node.dilation,
            node.groups,
            in_shape,
            out_shape,
            (in_shape[1], in_shape[2]),
        )
    assert isinstance(node, Linear), node
    return MatrixOperator(synapses.weight, synapses.bias, in_shape, out_shape)


def _behind(operator: Operator, pool: Composable, in_shape: Shape, name: str) -> Operator:
    """The operator that takes the input of `pool` instead of its output."""
    if isinstance(pool, Flatten):
        return replace(operator, in_shape=in_shape)
    window = _tiling(pool, in_shape)
    if isinstance(operator, ConvOperator):
        if window is not None:
            return _conv_behind_tiles(operator, window, in_shape, name)
        operator = as_matrix(operator, name)
    return _matrix_behind_pool(operator, _pool_matrix(pool, in_shape, name), in_shape, name)


def _tiling(pool: AvgPool | AdaptiveAvgPool, in_shape: Shape) -> Pair | None:
    """The window of a pooling whose windows tile the map without overlap or padding."""
    if isinstance(pool, AvgPool):
        tiles = pool.kernel == pool.stride and pool.padding == (0, 0)
        return pool.kernel if tiles else None
    height, width = in_shape[1:]
    if height % pool.size[0] or width % pool.size[1]:
        return None
    return height // pool.size[0], width // pool.size[1]


def _conv_behind_tiles(
    operator: ConvOperator, window: Pair, in_shape: Shape, name: str
) -> ConvOperator:
    """Each kernel weight spreads evenly over the window it pooled."""
    (wh, ww), (dh, dw) = window, operator.dilation
    out, inner, kh, kw = operator.weight.shape
    height, width = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    _bounded(name, (out * inner, height * wh * width * ww))
    spread = np.zeros((out, inner, height, wh, width, ww), np.float32)
    share = operator.weight.astype(np.float64) / (wh * ww)
    spread[:, :, ::dh, :, ::dw] = share[:, :, :, None, :, None]
    return replace(
        operator,
        weight=spread.reshape(out, inner, height * wh, width * ww),
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
    matrix = np.zeros((out_channels, rows, columns, channels, height, width), np.float32)
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
    return MatrixOperator(
        matrix.reshape(out_channels * rows * columns, -1),
        operator.bias,
        operator.in_shape,
        operator.out_shape,
    )


def _taps(operator: ConvOperator, axis: int, k: int) -> tuple[Array, Array]:
    """Output positions, and the input positions that kernel index `k` connects them with."""
    stride, offset = operator.stride[axis], k * operator.dilation[axis] - operator.padding[axis]
    limit = min(operator.reach[axis], operator.in_shape[1 + axis])
    outputs = np.arange(operator.out_shape[1 + axis])
    inputs = outputs * stride + offset
    inside = (inputs >= 0) & (inputs < limit)
    return outputs[inside], inputs[inside]


def _pool_matrix(pool: AvgPool | AdaptiveAvgPool, in_shape: Shape, name: str) -> Array:
    """(OH·OW, H·W) float64: the weight of each input position in each pooled one."""
    height, width = in_shape[1:]
    _bounded(name, (math.prod(pool.output_shape([in_shape])[1:]), height * width))
    if isinstance(pool, AvgPool):
        axes = [
            _window_rows(side, pool.kernel[i], pool.stride[i], pool.padding[i])
            for i, side in enumerate((height, width))
        ]
    else:
        axes = [adaptive_rows(side, pool.size[i]) for i, side in enumerate((height, width))]
    return np.kron(axes[0], axes[1])


def _window_rows(side: int, kernel: int, stride: int, padding: int) -> Array:
    count = (side + 2 * padding - kernel) // stride + 1
    rows = np.zeros((count, side))
    for o in range(count):
        begin = o * stride - padding
        rows[o, max(begin, 0) : max(begin + kernel, 0)] = 1 / kernel
    return rows


def adaptive_rows(side: int, count: int) -> Array:
    """PyTorch's windows: from floor(o · side / count) to ceil((o + 1) · side / count)."""
    rows = np.zeros((count, side))
    for o in range(count):
        begin, end = o * side // count, -(-(o + 1) * side // count)
        rows[o, begin:end] = 1 / (end - begin)
    return rows


def _matrix_behind_pool(
    operator: MatrixOperator, pool: Array, in_shape: Shape, name: str
) -> MatrixOperator:
    rows, positions = len(operator.weight), in_shape[1] * in_shape[2]
    _bounded(name, (rows, in_shape[0] * positions))
    per_channel = operator.weight.reshape(rows * in_shape[0], pool.shape[0]).astype(np.float64)
    weight = (per_channel @ pool).astype(np.float32).reshape(rows, -1)
    return replace(operator, weight=weight, in_shape=in_shape)


def _compose_readout(
    graph: SpikingGraph,
    node: Readout,
    folded: Mapping[str, Synapses],
    source: str,
    between: list[Composable],
) -> ReadoutOperator:
    shape = graph.shapes[node.inputs[0]]
    scale = 1.0 / node.divisor(shape, graph.time_steps)
    weight = folded[node.name].weight if node.linear else None
    bias = folded[node.name].bias if node.linear else None
    if not between:
        return ReadoutOperator(weight, node.votes, bias, scale, len(shape) == 3, shape)
    if weight is None:
        _bounded(node.name, (node.classes, node.classes * node.votes))
        weight = np.kron(np.eye(node.classes), np.ones(node.votes)).astype(np.float32)
    if len(shape) == 3:
        _bounded(node.name, (node.classes, math.prod(shape)))
        weight = np.repeat(weight, shape[1] * shape[2], axis=1)
    operator: Operator = MatrixOperator(weight, None, shape, (node.classes,))
    for pool in between:
        operator = _behind(operator, pool, graph.shapes[pool.inputs[0]], node.name)
    in_shape = graph.shapes[source]
    return ReadoutOperator(operator.weight, 1, bias, scale, False, in_shape)


def _bounded(name: str, shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > MAX_ELEMENTS:
        raise LimitError(
            f"{name}: composing its average pooling needs a {shape[0]} × {shape[1]} matrix; "
            f"at most {MAX_ELEMENTS} elements are supported. Use a pooling whose windows tile "
            "the map, or a smaller input"
        )
