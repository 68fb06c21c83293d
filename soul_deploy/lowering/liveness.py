"""Which neurons matter: unmasked, and with a nonzero synapse to another that matters.

The rest can be left out of an event network without changing an output: nothing reads them.
A neuron without inputs is not dead, since its bias may make it fire.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from soul_deploy.base.files import Array
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    Flatten,
    MaxPool,
    Merge,
    Node,
    Pool,
    Population,
    Projection,
    Readout,
    Scatter,
    Shape,
    SpikingGraph,
)
from soul_deploy.lowering.fan_out import fanout
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.lowering.linear_operators import ReadoutOperator, compose
from soul_deploy.model.model import Model


def live_neurons(model: Model) -> dict[str, Array]:
    """Population -> bool of its shape: the fixpoint, found in one pass from the readout back."""
    graph = model.graph
    folded = fold(graph, model.state, model.channel_masks)
    read: dict[str, Array] = {name: np.zeros(shape, bool) for name, shape in graph.shapes.items()}
    live: dict[str, Array] = {}
    for node in reversed(graph.nodes):
        if isinstance(node, Population):
            mask = model.neuron_masks.get(node.name)
            live[node.name] = read[node.name] if mask is None else read[node.name] & mask
            read[node.inputs[0]] |= live[node.name][: graph.shapes[node.inputs[0]][0]]
        elif isinstance(node, Projection | Readout):
            composed = compose(graph, folded, node.name)
            operator = composed.operator
            if isinstance(operator, ReadoutOperator):
                reads = _read_by_readout(operator)
            else:
                reads = fanout(operator, read[node.name]) > 0
            read[composed.source] |= reads
        else:
            for name in node.inputs:
                read[name] |= _read_behind(node, read[node.name], graph.shapes[name])
    return {node.name: live[node.name] for node in graph.populations}


def _read_behind(node: Node, read: Array, shape: Shape) -> Array:
    """Which of an input's values a stateless node needs for those of its own that are read.

    Average pooling and flattening are composed into projections, which read past them; here it is
    what else reads them.
    """
    if isinstance(node, Scatter):
        return np.asarray(read[list(node.index)])
    if isinstance(node, Pool):
        return _covered(node, read, shape)
    if isinstance(node, AdaptiveAvgPool):
        return np.full(shape, read.any())
    assert isinstance(node, Merge | Flatten), node
    return read.reshape(shape)


def deployed(model: Model) -> Model:
    """The same network with every neuron that does not matter masked: outputs are unchanged."""
    live = {name: keep for name, keep in live_neurons(model).items() if not keep.all()}
    return replace(model, neuron_masks=live)


def live_values(model: Model) -> dict[str, Array | None]:
    """Where each node that holds values can be nonzero, bool of its shape; None: everywhere.

    A population's neuron mask; behind it a max pooling's windows that hold an unmasked neuron, the
    union of the branches of a sum, what all branches of an AND have, the identity's of an IAND.
    """
    graph = model.graph
    live: dict[str, Array | None] = {}
    for node in graph.nodes:
        mask = None
        if isinstance(node, Population):
            mask = model.neuron_masks.get(node.name)
        elif (
            isinstance(node, MaxPool | Merge | Scatter) and graph.edges[node.name].kind != "analog"
        ):
            shapes = {name: graph.shapes[name] for name in node.inputs}
            before = [np.ones(s, bool) if live[n] is None else live[n] for n, s in shapes.items()]
            mask = _live_behind(node, [np.asarray(mask) for mask in before])
        live[node.name] = None if mask is None or mask.all() else mask
    return live


def _everywhere(graph: SpikingGraph, live: Mapping[str, Array | None], name: str) -> Array:
    mask = live[name]
    return np.ones(graph.shapes[name], bool) if mask is None else mask


def _live_behind(node: Node, inputs: list[Array]) -> Array:
    if isinstance(node, MaxPool):
        held = torch.from_numpy(inputs[0].astype(np.float32))[None]
        pooled = F.max_pool2d(held, node.kernel, node.stride, node.padding)[0]
        return np.asarray(pooled.numpy() > 0)
    if isinstance(node, Scatter):
        wide = np.zeros((node.channels, *inputs[0].shape[1:]), bool)
        wide[list(node.index)] = inputs[0]
        return wide
    assert isinstance(node, Merge), node
    if node.function == "iand":
        return inputs[0]
    join = np.logical_or if node.function == "add" else np.logical_and
    return np.asarray(join.reduce(inputs))


def _read_by_readout(operator: ReadoutOperator) -> Array:
    if operator.weight is None:
        return np.ones(operator.in_shape, bool)
    used = (operator.weight != 0).any(axis=0)
    if operator.space:
        used = np.broadcast_to(used[:, None, None], operator.in_shape)
    return np.asarray(used.reshape(operator.in_shape))


def _covered(node: Pool, read: Array, shape: Shape) -> Array:
    """Input positions inside the window of at least one pooled neuron that is read."""
    channels, height, width = shape
    kernel = torch.ones(channels, 1, *node.kernel, dtype=torch.float64)
    pooled = torch.from_numpy(np.ascontiguousarray(read)).double()[None]
    full = F.conv_transpose2d(pooled, kernel, None, node.stride, groups=channels)[0]
    inside = full[:, node.padding[0] :, node.padding[1] :][:, :height, :width]
    covered = np.zeros((channels, height, width), bool)
    covered[:, : inside.shape[1], : inside.shape[2]] = inside.numpy() > 0.5
    return covered
