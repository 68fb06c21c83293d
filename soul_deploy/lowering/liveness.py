"""Which neurons matter: unmasked, and with a nonzero synapse to another that matters.

The rest can be left out of an event network without changing an output: nothing reads them.
A neuron without inputs is not dead, since its bias may make it fire.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array, dispatch
from soul_deploy.lowering import fan_out, linear_operators
from soul_deploy.nn.operations import unweighed


@dataclass(frozen=True)
class _Backwards:
    """The pass from the readout back; read: which of each node's values are read so far."""

    graph: ir.SpikingGraph
    operator: Callable[[str], linear_operators.LinearProjection]
    read: dict[str, Array]


def live_neurons(
    graph: ir.SpikingGraph,
    operator: Callable[[str], linear_operators.LinearProjection],
    neuron_masks: Mapping[str, Array],
) -> dict[str, Array]:
    """Population -> bool of its shape: the fixpoint, found in one pass from the readout back, in
    which neurons that feed back to others of their own population are followed to the end.

    operator: gives the linear operator of a projection or of the readout.
    """
    read = {name: np.zeros(shape, bool) for name, shape in graph.shapes.items()}
    walk = _Backwards(graph, operator, read)
    for node in reversed(graph.nodes):
        if node.name in neuron_masks:
            read[node.name] = read[node.name] & neuron_masks[node.name]
        if node.feedback is not None:
            _through_feedback(node, walk, neuron_masks.get(node.name))
        weighs = node.projects or node is graph.readout
        for name in (operator(node.name).source,) if weighs else node.inputs:
            read[name] |= needed_inputs(node, walk).reshape(graph.shapes[name])
    return {node.name: read[node.name] for node in graph.populations}


def _through_feedback(node: ir.Node, walk: _Backwards, mask: Array | None) -> None:
    """Add the neurons whose spikes reach, through the feedback, those that are read."""
    assert node.feedback is not None
    read, operator = walk.read[node.name], walk.operator(node.feedback.name).operator
    while True:
        feeding = fan_out.fanout(operator, read) > 0
        more = read | (feeding if mask is None else feeding & mask)
        if np.array_equal(more, read):
            break
        read = more
    walk.read[node.name] = read


@dispatch.operation_table(ir.Node)
def needed_inputs(node: ir.Node, walk: _Backwards) -> Array:
    """What a node needs of each input for those of its own values that are read: bool.

    Average pooling and flattening are composed into projections, which read past them; here it is
    what else reads them.
    """
    raise ir.no_entry(node, "the search for live neurons")


needed_inputs.on(ir.Input, ir.Merge, ir.Flatten, ir.Scale, ir.ChannelNorm)(
    lambda node, walk: walk.read[node.name]
)
needed_inputs.on(ir.Scatter)(lambda node, walk: walk.read[node.name][list(node.index)])


@needed_inputs.on(ir.Population)
def _neurons(node: ir.Population, walk: _Backwards) -> Array:
    return walk.read[node.name][: walk.graph.shapes[node.inputs[0]][0]]


@needed_inputs.on(ir.Projection)
def _synapses(node: ir.Projection, walk: _Backwards) -> Array:
    return np.asarray(fan_out.fanout(walk.operator(node.name).operator, walk.read[node.name]) > 0)


@needed_inputs.on(ir.AdaptiveAvgPool)
def _whole_map(node: ir.AdaptiveAvgPool, walk: _Backwards) -> Array:
    return np.full(walk.graph.shapes[node.inputs[0]], walk.read[node.name].any())


@needed_inputs.on(ir.Pool)
def _covered(node: ir.Pool, walk: _Backwards) -> Array:
    """Input positions inside the window of at least one pooled neuron that is read."""
    shape, out = walk.graph.shapes[node.inputs[0]], walk.graph.shapes[node.name]
    ones, reach = np.ones((shape[0], 1, *node.kernel), np.float32), (shape[1], shape[2])
    geometry = node.stride, node.padding, (1, 1), shape[0], shape, out, reach
    window = linear_operators.ConvOperator(ones, None, *geometry)
    return np.asarray(fan_out.fanout(window, walk.read[node.name]) > 0)


@needed_inputs.on(ir.Readout)
def _readout(node: ir.Readout, walk: _Backwards) -> Array:
    operator = walk.operator(node.name).operator.readout
    assert operator is not None
    if operator.weight is None:
        return np.ones(operator.in_shape, bool)
    used = (operator.weight != 0).any(axis=0)
    if operator.space:
        used = np.broadcast_to(used[:, None, None], operator.in_shape)
    return np.asarray(used.reshape(operator.in_shape))


def live_values(
    graph: ir.SpikingGraph, neuron_masks: Mapping[str, Array]
) -> dict[str, Array | None]:
    """Where each node that holds values can be nonzero, bool of its shape; None: everywhere.

    A population's neuron mask; behind it a max pooling's windows that hold an unmasked neuron, the
    union of the branches of a sum, what all branches of an AND have, the identity's of an IAND.
    """
    live: dict[str, Array | None] = {}
    for node in graph.nodes:
        masks = [live[name] for name in node.inputs]
        if node.fires:
            mask = neuron_masks.get(node.name)
        elif graph.edges[node.name].kind == "analog":
            mask = None
        else:
            shapes = [graph.shapes[name] for name in node.inputs]
            inputs = [
                np.ones(shape, bool) if mask is None else mask
                for mask, shape in zip(masks, shapes, strict=True)
            ]
            mask = can_hold(node, inputs)
        live[node.name] = None if mask is None or mask.all() else mask
    return live


@dispatch.operation_table(ir.Node)
def can_hold(node: ir.Node, inputs: list[Array]) -> Array | None:
    """Where a node without weights can be nonzero, from where its inputs can; None: everywhere."""
    raise ir.no_entry(node, "the search for live values")


can_hold.on(
    *(ir.Input, ir.Projection, ir.Population, ir.AvgPool, ir.AdaptiveAvgPool, ir.Flatten),
    *(ir.Scale, ir.ChannelNorm, ir.Readout),
)(lambda node, inputs: None)


@can_hold.on(ir.MaxPool, ir.Scatter)
def _moved(node: ir.Node, inputs: list[Array]) -> Array:
    values = torch.from_numpy(inputs[0].astype(np.float32))  # a copy: masks are read-only
    return np.asarray(unweighed(node, values[None])[0].numpy() > 0)


@can_hold.on(ir.Merge)
def _joined(node: ir.Merge, inputs: list[Array]) -> Array:
    if node.function == "iand":
        return inputs[0]
    join = np.logical_or if node.function == "add" else np.logical_and
    return np.asarray(join.reduce(inputs))
