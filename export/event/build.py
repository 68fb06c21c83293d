"""From a model to an event network: rows by presynaptic neuron, channel-last.

What no output depends on is left out (`lowering.liveness`): masked neurons, and neurons that only
those read. `storage_format` decides which form a layer's synapses get.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.analysis.synops import live_targets, population_behind
from soul_deploy.base.errors import UnknownNameError, UnsupportedGraphError, UsageError
from soul_deploy.base.files import Array
from soul_deploy.base.memory import WORK_BYTES
from soul_deploy.export.event.storage_format import (
    CONVOLUTION_FORMS,
    MATRIX_FORMS,
    Choice,
    Form,
    channel_last_mask,
    channel_last_order,
    represent_convolution,
    represent_matrix,
)
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    AvgPool,
    Flatten,
    MaxPool,
    Merge,
    Node,
    Population,
    Projection,
    Readout,
    Scatter,
    SpikingGraph,
)
from soul_deploy.lowering.fold_batch_norm import Synapses as Folded
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.lowering.footprint import require_planning
from soul_deploy.lowering.linear_operators import ConvOperator, ReadoutOperator, compose
from soul_deploy.lowering.liveness import deployed, live_values
from soul_deploy.model.model import Model
from soul_deploy.nn.neuron import learned_decay
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.format.file import save_event_network
from soul_deploy.runtime.format.network import (
    CurrentLayer,
    EventNetwork,
    Layer,
    MergeLayer,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
    ScatterLayer,
    SpikingLayer,
)


def export_event(
    model: Model,
    path: Path | str,
    *,
    source_sha256: str | None = None,
    representation: Choice = "auto",
    rows: Mapping[str, Form] | None = None,
    max_memory: int | None = None,
) -> EventNetwork:
    """Build the event network of `model` and write it atomically to `path`.

    source_sha256: sha256 of the model file, kept for tracing. Raises as `build_event_network`.
    """
    network = build_event_network(
        model,
        source_sha256=source_sha256,
        representation=representation,
        rows=rows,
        max_memory=max_memory,
    )
    save_event_network(path, network)
    return network


def build_event_network(
    model: Model,
    *,
    source_sha256: str | None = None,
    representation: Choice = "auto",
    rows: Mapping[str, Form] | None = None,
    max_memory: int | None = None,
) -> EventNetwork:
    """The event network of `model`: batch norm folded, average pooling composed, masks applied.

    representation: of the synapses; "auto" decides layer by layer (storage_format.py).
    rows: the form of single layers, by the name of the projection or of its population, whatever
    `representation` says: "dense", "sparse" (convolutions only) or "explicit".
    max_memory: bytes that one layer's explicit rows may take; None: what the machine has. More than
    WORK_BYTES also allows as much for planning with the network (footprint.py).
    Raises UnsupportedGraphError naming the node that cannot be computed and why, LimitError for
    sizes beyond the runtime's, UnknownNameError and UsageError for `rows` that cannot be.
    """
    refuse_unsupported(model.graph)
    require_planning(model.graph, max(WORK_BYTES, max_memory or 0))
    model = deployed(model)
    graph = model.graph
    folded = fold(graph, model.state, model.channel_masks)
    forms = _forms(graph, rows or {})
    parts = _Parts(model, folded, live_values(model), representation, max_memory, forms)
    info = model.info
    norm = info.normalization
    return EventNetwork(
        input_name=graph.input.name,
        input_shape=graph.input.shape,
        time_steps=graph.time_steps,
        layers=tuple(_layer(parts, graph[name]) for name in layer_names(graph)),
        readout=_readout(graph, folded),
        fixed_steps=valid_for_one_t(model),
        reset_per_sample=info.validity.reset_per_sample,
        normalization=None if norm is None else eventnet.Normalization(norm.mean, norm.std),
        classes=info.classes,
        source_sha256=source_sha256,
        input_kind=info.input_kind,
    )


def valid_for_one_t(model: Model) -> bool:
    """Whether the network holds for its T only: by its removal, or for a stored spike pattern."""
    generated = any(node.generated for node in model.graph.populations)
    return generated or model.info.validity.time_steps is not None


def layer_names(graph: SpikingGraph) -> tuple[str, ...]:
    """The nodes that are layers of the event network, in execution order.

    A projection that feeds one population and nothing else is part of that population's layer.
    """
    kinds = Population | MaxPool | Merge | Scatter
    return tuple(
        node.name
        for node in graph.nodes
        if isinstance(node, kinds)
        or (isinstance(node, Projection) and population_behind(graph, node.name) is None)
    )


def refuse_unsupported(graph: SpikingGraph) -> None:
    """Raise UnsupportedGraphError for what the event runtime has no layer for."""
    for node in graph.nodes:
        for name in node.inputs:
            source, edge = graph[name], graph.edges[name]
            projects = isinstance(node, Projection | Readout | AvgPool | AdaptiveAvgPool | Flatten)
            if isinstance(source, AvgPool | AdaptiveAvgPool | Flatten) and not projects:
                raise UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no projection ({source.op}); the event "
                    "runtime composes average pooling and flattening into a projection, so a "
                    "projection must follow them"
                )
            if isinstance(node, Population) and edge.kind != "analog":
                raise UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no current but {edge.kind} values "
                    f"({source.op}); put a convolution or a linear layer in between"
                )
    source_name = graph.readout.inputs[0]
    while isinstance(graph[source_name], AvgPool | AdaptiveAvgPool | Flatten):
        source_name = graph[source_name].inputs[0]
    if graph.edges[source_name].kind == "analog":
        raise UnsupportedGraphError(
            f"{graph.readout.name}: reads analog values from {source_name!r}; a readout sums spikes"
        )


@dataclass(frozen=True)
class _Parts:
    """What layers are made from; the model's masks are those of `deployed`."""

    model: Model
    folded: dict[str, Folded]
    live: dict[str, Array | None]
    choice: Choice
    max_memory: int | None
    forms: Mapping[str, Form] = field(default_factory=dict)
    """What was asked of single projections."""


def _forms(graph: SpikingGraph, rows: Mapping[str, Form]) -> dict[str, Form]:
    """`rows` by projection."""
    projections = [node.name for node in graph.nodes if isinstance(node, Projection)]
    known = {name: name for name in projections}
    for name in projections:
        known[population_behind(graph, name) or name] = name
    forms: dict[str, Form] = {}
    for name, form in rows.items():
        if name not in known:
            raise UnknownNameError("layer of --rows", name, projections)
        if forms.setdefault(known[name], form) != form:
            raise UsageError(f"--rows {name}={form}: {known[name]} was given as another form too")
    return forms


def _layer(parts: _Parts, node: Node) -> Layer:
    graph = parts.model.graph
    if isinstance(node, Population):
        source = node.inputs[0]
        fused = isinstance(graph[source], Projection) and population_behind(graph, source)
        return _spiking_layer(parts, node) if fused else _population_layer(parts, node)
    if isinstance(node, Projection):
        return CurrentLayer(name=node.name, **_synapses(parts, node.name))
    if isinstance(node, MaxPool):
        return _pool_layer(graph, node)
    if isinstance(node, Merge):
        return MergeLayer(node.name, node.inputs, node.function, graph.shapes[node.name])
    assert isinstance(node, Scatter), node
    shapes = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    return ScatterLayer(node.name, node.inputs[0], *shapes, np.array(node.index, np.uint32))


def _synapses(parts: _Parts, projection: str) -> dict[str, Any]:
    """The fields that layers with synapses share; `live` is that of the currents."""
    graph = parts.model.graph
    composed = compose(graph, parts.folded, projection)
    operator, edge = composed.operator, graph.edges[composed.source]
    assert not isinstance(operator, ReadoutOperator)
    before = parts.live[composed.source]
    form = parts.forms.get(projection)
    matrix = not isinstance(operator, ConvOperator)
    possible = MATRIX_FORMS if matrix else CONVOLUTION_FORMS
    if form is not None and form not in possible:
        what = "a matrix" if matrix else "a convolution"
        raise UsageError(
            f"--rows {projection}={form}: {projection} is {what}; choose {' or '.join(possible)}"
        )
    how = form or parts.choice, parts.max_memory
    current = live_targets(graph, parts.model.neuron_masks, projection)
    if isinstance(operator, ConvOperator):
        synapses, weighed = represent_convolution(operator, before, current, *how)
    else:
        synapses, weighed = represent_matrix(operator, before, current, *how)
    return {
        "source": composed.source,
        "edge": edge.kind,
        "bound": edge.bound,
        "synapses": synapses,
        "live": None if current is None else channel_last_mask(current),
        "alternatives": weighed,
    }


def _spiking_layer(parts: _Parts, node: Population) -> SpikingLayer:
    (projection,) = node.inputs
    shared = _synapses(parts, projection) | _neurons(parts, node)
    return SpikingLayer(name=node.name, projection=projection, **shared)


def _population_layer(parts: _Parts, node: Population) -> PopulationLayer:
    (source,) = node.inputs
    shape = parts.model.graph.shapes[source]
    return PopulationLayer(node.name, source, shape, **_neurons(parts, node))


def _neurons(parts: _Parts, node: Population) -> dict[str, Any]:
    """The fields that layers with neurons share."""
    model, mask = parts.model, parts.live[node.name]
    pattern = model.state[f"{node.name}.pattern"] if node.generated else None
    return {
        "neuron": _equation(model, node),
        "live": None if mask is None else channel_last_mask(mask),
        "pattern": None if pattern is None else np.ascontiguousarray(pattern != 0).astype(np.uint8),
    }


def _equation(model: Model, node: Population) -> NeuronEquation:
    if not node.neuron.learned:
        return node.neuron.equation()
    import torch

    w = torch.from_numpy(np.array(model.state[f"{node.name}.w"]))
    return node.neuron.equation(learned_decay(w))


def _pool_layer(graph: SpikingGraph, node: MaxPool) -> PoolLayer:
    (source,) = node.inputs
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
