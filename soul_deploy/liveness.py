"""Which neurons matter: unmasked, and with a nonzero synapse to another that matters.

The rest can be left out of an event network without changing an output: nothing reads them.
A neuron without inputs is not dead, since its bias may make it fire.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from soul_deploy.composing import ReadoutOperator, compose
from soul_deploy.counting import fanout
from soul_deploy.folding import fold
from soul_deploy.graph import MaxPool, Population, Projection, Readout, SpikingGraph
from soul_deploy.modelfile import Model
from soul_deploy.runtime.files import Array


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
        elif isinstance(node, MaxPool):
            read[node.inputs[0]] |= _covered(node, read[node.name], graph)
        elif isinstance(node, Projection | Readout):
            composed = compose(graph, folded, node.name)
            operator = composed.operator
            if isinstance(operator, ReadoutOperator):
                reads = _read_by_readout(operator)
            else:
                reads = fanout(operator, read[node.name]) > 0
            read[composed.source] |= reads
    return {node.name: live[node.name] for node in graph.populations}


def deployed(model: Model) -> Model:
    """The same network with every neuron that does not matter masked: outputs are unchanged."""
    live = {name: keep for name, keep in live_neurons(model).items() if not keep.all()}
    return replace(model, neuron_masks=live)


def live_values(model: Model) -> dict[str, Array | None]:
    """Where each node that holds values can be nonzero, bool of its shape; None: everywhere.

    A population's neuron mask; behind it a max pooling's windows that hold an unmasked neuron.
    """
    graph = model.graph
    live: dict[str, Array | None] = {graph.input.name: None}
    for node in graph.nodes:
        if isinstance(node, Population):
            live[node.name] = model.neuron_masks.get(node.name)
        elif isinstance(node, MaxPool):
            mask = live.get(node.inputs[0])
            if mask is not None:
                held = torch.from_numpy(mask.astype(np.float32))[None]
                mask = F.max_pool2d(held, node.kernel, node.stride, node.padding)[0].numpy() > 0
            live[node.name] = None if mask is None or mask.all() else mask
    return live


def _read_by_readout(operator: ReadoutOperator) -> Array:
    if operator.weight is None:
        return np.ones(operator.in_shape, bool)
    used = (operator.weight != 0).any(axis=0)
    if operator.space:
        used = np.broadcast_to(used[:, None, None], operator.in_shape)
    return np.asarray(used.reshape(operator.in_shape))


def _covered(node: MaxPool, read: Array, graph: SpikingGraph) -> Array:
    """Input positions inside the window of at least one pooled neuron that is read."""
    channels, height, width = graph.shapes[node.inputs[0]]
    kernel = torch.ones(channels, 1, *node.kernel, dtype=torch.float64)
    pooled = torch.from_numpy(np.ascontiguousarray(read)).double()[None]
    full = F.conv_transpose2d(pooled, kernel, None, node.stride, groups=channels)[0]
    inside = full[:, node.padding[0] :, node.padding[1] :][:, :height, :width]
    covered = np.zeros((channels, height, width), bool)
    covered[:, : inside.shape[1], : inside.shape[2]] = inside.numpy() > 0.5
    return covered
