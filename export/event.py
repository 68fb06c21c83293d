"""From a model to an event network: rows by presynaptic neuron, channel-last.

What no output depends on is left out (soul_deploy.liveness): masked neurons, and neurons that only
those read. Which form a layer's synapses get is decided in representation.py.
"""

from pathlib import Path

import numpy as np

from soul_deploy.composing import ConvOperator, ReadoutOperator, compose
from soul_deploy.export.representation import (
    Choice,
    channel_last_mask,
    channel_last_order,
    represent_convolution,
    represent_matrix,
)
from soul_deploy.folding import Synapses as Folded
from soul_deploy.folding import fold
from soul_deploy.graph import MaxPool, Population, Projection, SpikingGraph
from soul_deploy.liveness import deployed, live_values
from soul_deploy.modelfile import Model
from soul_deploy.neurons import learned_decay
from soul_deploy.runtime import eventnet
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import UnsupportedGraphError
from soul_deploy.runtime.eventfile import save_event_network
from soul_deploy.runtime.eventnet import EventNetwork, PoolLayer, ReadoutLayer, SpikingLayer
from soul_deploy.runtime.files import Array


def export_event(
    model: Model,
    path: Path,
    *,
    source_sha256: str | None = None,
    representation: Choice = "auto",
) -> EventNetwork:
    """Build the event network of `model` and write it atomically to `path`.

    source_sha256: sha256 of the model file, kept for tracing. Raises as `build_event_network`.
    """
    network = build_event_network(model, source_sha256=source_sha256, representation=representation)
    save_event_network(path, network)
    return network


def build_event_network(
    model: Model, *, source_sha256: str | None = None, representation: Choice = "auto"
) -> EventNetwork:
    """The event network of `model`: batch norm folded, average pooling composed, masks applied.

    representation: of the synapses; "auto" decides layer by layer (representation.py).
    Raises UnsupportedGraphError naming the node that spikes cannot be computed through, LimitError
    for sizes beyond the runtime's.
    """
    model = deployed(model)
    graph = model.graph
    live = live_values(model)
    folded = fold(graph, model.state, model.channel_masks)
    layers: list[SpikingLayer | PoolLayer] = []
    for node in graph.nodes:
        if isinstance(node, Population):
            layers.append(_spiking_layer(model, folded, node, live, representation))
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
        fixed_steps=valid_for_one_t(model),
        reset_per_sample=info.validity.reset_per_sample,
        normalization=None if norm is None else eventnet.Normalization(norm.mean, norm.std),
        classes=info.classes,
        source_sha256=source_sha256,
    )


def valid_for_one_t(model: Model) -> bool:
    """Whether the network holds for its T only: by its removal, or for a stored spike pattern."""
    generated = any(node.generated for node in model.graph.populations)
    return generated or model.info.validity.time_steps is not None


def _spiking_layer(
    model: Model,
    folded: dict[str, Folded],
    node: Population,
    live: dict[str, Array | None],
    choice: Choice,
) -> SpikingLayer:
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
    mask, before = live[node.name], live[composed.source]
    current = None if mask is None else mask[: operator.out_shape[0]]
    if isinstance(operator, ConvOperator):
        synapses, weighed = represent_convolution(operator, before, current, choice)
    else:
        synapses, weighed = represent_matrix(operator, before, current, choice)
    pattern = model.state[f"{node.name}.pattern"] if node.generated else None
    return SpikingLayer(
        name=node.name,
        projection=projection.name,
        source=composed.source,
        edge=edge.kind,
        bound=edge.bound,
        synapses=synapses,
        neuron=_equation(model, node),
        live=None if mask is None else channel_last_mask(mask),
        pattern=None if pattern is None else np.ascontiguousarray(pattern != 0).astype(np.uint8),
        alternatives=weighed,
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
