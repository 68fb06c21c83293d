"""From a model to an event network: rows by presynaptic neuron, channel-last.

Dense rows are added with SIMD, compressed rows visit only nonzero weights. Which one a layer gets
is decided by its weight density alone, `DENSE_FROM`.
"""

import math
from pathlib import Path

import numpy as np

from soul_deploy.composing import ConvOperator, MatrixOperator, ReadoutOperator, compose
from soul_deploy.folding import Synapses as Folded
from soul_deploy.folding import fold
from soul_deploy.graph import MaxPool, Population, Projection, Shape, SpikingGraph
from soul_deploy.modelfile import Model
from soul_deploy.neurons import learned_decay
from soul_deploy.runtime import eventnet
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import UnsupportedGraphError
from soul_deploy.runtime.eventfile import save_event_network
from soul_deploy.runtime.eventnet import (
    Convolution,
    DenseRows,
    EventNetwork,
    Matrix,
    PoolLayer,
    ReadoutLayer,
    Rows,
    SparseRows,
    SpikingLayer,
)
from soul_deploy.runtime.files import Array

DENSE_FROM = 0.2
"""Share of nonzero weights from which on contiguous rows are faster than compressed ones."""


def export_event(model: Model, path: Path, *, source_sha256: str | None = None) -> EventNetwork:
    """Build the event network of `model` and write it atomically to `path`.

    source_sha256: sha256 of the model file, kept for tracing. Raises as `build_event_network`.
    """
    network = build_event_network(model, source_sha256=source_sha256)
    save_event_network(path, network)
    return network


def build_event_network(model: Model, *, source_sha256: str | None = None) -> EventNetwork:
    """The event network of `model`: batch norm folded, average pooling composed, masks applied.

    Raises UnsupportedGraphError naming the node that spikes cannot be computed through, LimitError
    for sizes beyond the runtime's.
    """
    graph = model.graph
    folded = fold(graph, model.state, model.channel_masks)
    layers: list[SpikingLayer | PoolLayer] = []
    for node in graph.nodes:
        if isinstance(node, Population):
            layers.append(_spiking_layer(model, folded, node))
        elif isinstance(node, MaxPool):
            layers.append(_pool_layer(graph, node))
    info = model.info
    norm = info.normalization
    return EventNetwork(
        input_name=graph.input.name,
        input_shape=graph.input.shape,
        time_steps=graph.time_steps,
        layers=tuple(layers),
        readout=_readout(graph, folded),
        fixed_steps=info.validity.time_steps is not None,
        reset_per_sample=info.validity.reset_per_sample,
        normalization=None if norm is None else eventnet.Normalization(norm.mean, norm.std),
        classes=info.classes,
        source_sha256=source_sha256,
    )


def _spiking_layer(model: Model, folded: dict[str, Folded], node: Population) -> SpikingLayer:
    graph = model.graph
    projection = graph[node.inputs[0]]
    if not isinstance(projection, Projection):
        raise UnsupportedGraphError(
            f"{node.name}: its input {projection.name!r} is no projection ({projection.op}); the "
            "event runtime takes populations fed by a convolution or a linear layer"
        )
    composed = compose(graph, folded, projection.name)
    operator = composed.operator
    assert not isinstance(operator, ReadoutOperator)
    edge = graph.edges[composed.source]
    return SpikingLayer(
        name=node.name,
        projection=projection.name,
        source=composed.source,
        edge=edge.kind,
        bound=edge.bound,
        synapses=_convolution(operator)
        if isinstance(operator, ConvOperator)
        else _matrix(operator),
        neuron=_equation(model, node),
    )


def _equation(model: Model, node: Population) -> NeuronEquation:
    if not node.neuron.learned:
        return node.neuron.equation()
    import torch

    w = torch.from_numpy(np.array(model.state[f"{node.name}.w"]))
    return node.neuron.equation(learned_decay(w))


def _pool_layer(graph: SpikingGraph, node: MaxPool) -> PoolLayer:
    (source,) = node.inputs
    if graph.edges[source].kind == "analog":
        raise UnsupportedGraphError(
            f"{node.name}: max pooling of analog values from {source!r}; the event runtime pools "
            "spikes only"
        )
    return PoolLayer(
        name=node.name,
        source=source,
        in_shape=graph.shapes[source],
        out_shape=graph.shapes[node.name],
        kernel=node.kernel,
        stride=node.stride,
        padding=node.padding,
    )


def _convolution(operator: ConvOperator) -> Convolution:
    """Rows (channel, kernel row, kernel column), the kernel mirrored."""
    weight = operator.weight[:, :, ::-1, ::-1]
    by_source = _by_source(weight, operator.groups)
    if _density(weight) >= DENSE_FROM:
        rows: Rows = DenseRows(np.ascontiguousarray(by_source))
    else:
        channels = operator.in_shape[0]
        rows = _sparse(
            _spread_groups(by_source, operator.groups).reshape(
                channels * math.prod(weight.shape[2:]), -1
            )
        )
    reach = tuple(min(operator.reach[i], operator.in_shape[1 + i]) for i in (0, 1))
    return Convolution(
        in_shape=operator.in_shape,
        out_shape=operator.out_shape,
        rows=rows,
        bias=operator.bias,
        kernel=(weight.shape[2], weight.shape[3]),
        stride=operator.stride,
        padding=operator.padding,
        dilation=operator.dilation,
        groups=operator.groups,
        reach=(reach[0], reach[1]),
    )


def _by_source(weight: Array, groups: int) -> Array:
    """(C_out, C_in / g, kh, kw) to (C_in, kh, kw, C_out / g)."""
    out, inner, height, width = weight.shape
    split = weight.reshape(groups, out // groups, inner, height, width)
    return split.transpose(0, 2, 3, 4, 1).reshape(groups * inner, height, width, out // groups)


def _spread_groups(by_source: Array, groups: int) -> Array:
    """(C_in, kh, kw, C_out / g) to (C_in, kh, kw, C_out) with zeros across groups."""
    channels, height, width, share = by_source.shape
    spread = np.zeros((channels, height, width, groups, share), np.float32)
    for g in range(groups):
        inside = slice(g * channels // groups, (g + 1) * channels // groups)
        spread[inside, :, :, g] = by_source[inside]
    return spread.reshape(channels, height, width, -1)


def _matrix(operator: MatrixOperator) -> Matrix:
    """Rows by presynaptic neuron, both sides channel-last."""
    columns = channel_last_order(operator.in_shape)
    targets = channel_last_order(operator.out_shape)
    rows: Rows
    if _density(operator.weight) >= DENSE_FROM:
        rows = DenseRows(np.ascontiguousarray(operator.weight[targets][:, columns].T))
    else:
        rows = _sparse(operator.weight[targets][:, columns].T)
    bias = operator.bias
    if bias is not None:
        bias = np.repeat(bias, math.prod(operator.out_shape) // len(bias))[targets]
    return Matrix(operator.in_shape, operator.out_shape, rows, bias)


def channel_last_order(shape: Shape) -> Array:
    """order[k]: channel-major index of the neuron with channel-last index k."""
    order = np.arange(math.prod(shape)).reshape(shape)
    return (order if len(shape) == 1 else order.transpose(1, 2, 0)).reshape(-1)


def _sparse(dense: Array) -> SparseRows:
    """The nonzero entries of (rows, targets), row by row."""
    row, target = np.nonzero(dense)
    starts = np.zeros(len(dense) + 1, np.uint32)
    starts[1:] = np.cumsum(np.bincount(row, minlength=len(dense)))
    return SparseRows(starts, target.astype(np.uint32), dense[row, target].astype(np.float32))


def _density(weight: Array) -> float:
    return np.count_nonzero(weight) / weight.size


def _readout(graph: SpikingGraph, folded: dict[str, Folded]) -> ReadoutLayer:
    node = graph.readout
    composed = compose(graph, folded, node.name)
    operator = composed.operator
    assert isinstance(operator, ReadoutOperator)
    weight = operator.weight
    if weight is not None and not operator.space:
        weight = weight[:, channel_last_order(operator.in_shape)]
    return ReadoutLayer(
        name=node.name,
        source=composed.source,
        in_shape=operator.in_shape,
        classes=node.classes,
        space=operator.space,
        weight=None if weight is None else np.ascontiguousarray(weight),
        bias=operator.bias,
        votes=operator.votes,
        divisor=node.divisor(graph.shapes[node.inputs[0]], 1),
    )
