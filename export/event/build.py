"""From a model to an event network: rows by presynaptic neuron, channel-last.

What no output depends on is left out (`lowering.liveness`): masked neurons, and neurons that only
those read. `storage_format` decides how a layer's synapses are stored. The runtime decides how they
run, unless the file says it; the file also says how often layers fired, if images are given.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch, errors, memory
from soul_deploy.data.given import Images, images_for
from soul_deploy.export.event import storage_format
from soul_deploy.lowering import deploy, fan_out, footprint, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format import bounds, file, validate
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.ops.rates import measure_rates
from soul_deploy.runtime.plan.costs import USUAL_RATE, pooled_rate
from soul_deploy.runtime.plan.forms import possible_forms, require_form
from soul_deploy.runtime.plan.planes import fits_planes

RowForm = Literal["dense", "sparse", "explicit", "analog", "gather", "planes"]
"""How a layer's rows are stored, or how they run, which says how they are stored too."""
ROW_FORMS: tuple[RowForm, ...] = get_args(RowForm)
STORED_AS: Mapping[RowForm, storage_format.Form] = {
    **{form: form for form in get_args(storage_format.Form)},
    **dict.fromkeys(("analog", "gather"), "dense"),
    "planes": "sparse",
}


def export_event(
    model: Model,
    path: Path | str,
    *,
    source_sha256: str | None = None,
    representation: storage_format.Choice = "auto",
    rows: Mapping[str, RowForm] | None = None,
    max_memory: int | None = None,
    images: Images | None = None,
) -> eventnet.EventNetwork:
    """Build the event network of `model` and write it atomically to `path`.

    source_sha256: sha256 of the model file, kept for tracing. Raises as `build_event_network`.
    """
    network = build_event_network(
        model,
        source_sha256=source_sha256,
        representation=representation,
        rows=rows,
        max_memory=max_memory,
        images=images,
    )
    file.save_event_network(path, network)
    return network


def build_event_network(
    model: Model,
    *,
    source_sha256: str | None = None,
    representation: storage_format.Choice = "auto",
    rows: Mapping[str, RowForm] | None = None,
    max_memory: int | None = None,
    images: Images | None = None,
) -> eventnet.EventNetwork:
    """The event network of `model`: batch norm folded, average pooling composed, masks applied.

    representation: of the synapses; "auto" decides layer by layer (storage_format.py).
    rows: the form of single layers, by the name of the projection or of its population, whatever
    `representation` says: "explicit", or how they shall run (runtime/plan/forms.py), which the file
    keeps: "dense", "analog" or "gather" on whole rows, "sparse" or "planes" on compressed ones.
    max_memory: bytes that one layer's explicit rows may take; None: what the machine has. More than
    WORK_BYTES also allows as much for planning with the network (footprint.py).
    images: as `images_for` takes them; on them it is measured how often layers fire, which decides
    how the file runs unless somebody says it. None: nothing is kept.
    Raises UnsupportedGraphError naming the node that cannot be computed and why, LimitError for
    sizes beyond the runtime's, UnknownNameError and UsageError for `rows` that cannot be.
    """
    footprint.require_planning(model.graph, max(memory.WORK_BYTES, max_memory or 0))
    lowered, info = deploy.lower(model).trimmed.composed, model.info
    graph = lowered.graph
    refuse_unsupported(graph)
    forms = _forms(graph, rows or {})
    parts = _Parts(lowered, representation, max_memory, forms)
    layers = tuple(_layers(parts))
    network = eventnet.EventNetwork(
        input_name=graph.input.name,
        input_shape=graph.input.shape,
        time_steps=graph.time_steps,
        layers=layers,
        readout=_readout(parts.lowered),
        fixed_steps=model.for_one_t,
        reset_per_sample=info.validity.reset_per_sample,
        normalization=normalization_of(model),
        integers=model.input_rule.integers,
        classes=info.classes,
        source_sha256=source_sha256,
        input_kind=info.input_kind,
        input_bound=graph.input.events,
        forms=_running_forms(layers, forms),
    )
    if images is None:
        return network
    given, _ = images_for(model, images)
    rates, active = measure_rates(Network(network, 1, max_memory), given.numpy())
    return replace(network, rates=rates, active=active)


def normalization_of(model: Model) -> eventnet.PixelNormalization | None:
    """How the file says that pixels are normalised: not at all where weights take integers."""
    norm = model.info.normalization
    if norm is None or model.graph.integers:
        return None
    return eventnet.PixelNormalization(norm.mean, norm.std)


def _running_forms(layers: Sequence[eventnet.Layer], rows: Mapping[str, RowForm]) -> dict[str, str]:
    """What the file says of how layers run. rows: by projection; a form of storage alone, in which
    the layer runs in one way, says nothing.
    """
    found: dict[str, str] = {}
    for layer in layers:
        form = rows.get(layer.projection) if isinstance(layer, eventnet.Synaptic) else None
        if form is None or not isinstance(layer, eventnet.Synaptic):
            continue
        if form in possible_forms(layer) or form not in get_args(storage_format.Form):
            found[layer.name] = require_form(layer, form, f"--rows {layer.projection}={form}")
    return found


def layer_names(graph: ir.SpikingGraph) -> tuple[str, ...]:
    """The nodes that are layers of the event network, in execution order.

    A projection that feeds one population and nothing else is part of that population's layer.
    """
    return tuple(node.name for node in graph.nodes if layer_maker(node, graph) is not None)


def refuse_unsupported(graph: ir.SpikingGraph) -> None:
    """Raise UnsupportedGraphError for what the event runtime has no layer for."""
    for node in graph.nodes:
        for name in node.inputs:
            source, edge = graph[name], graph.edges[name]
            takes_all = node.projects or node.composable or node is graph.readout
            if source.composable and not takes_all:
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no projection ({source.op}); flattening, "
                    "and adaptive pooling whose windows differ in size, run as a part of the "
                    "projection behind them, so a projection must follow"
                )
            if node.fires and edge.kind != "analog":
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no current but {edge.kind} values "
                    f"({source.op}); put a convolution or a linear layer in between"
                )
    source_name, _ = linear_operators.walk_back(graph, graph.readout.name)
    if graph.edges[source_name].kind == "analog":
        raise errors.UnsupportedGraphError(
            f"{graph.readout.name}: reads analog values from {source_name!r}; a readout sums spikes"
        )


@dataclass(frozen=True)
class _Parts:
    """What layers are built from; neurons that no output depends on are masked in `lowered`."""

    lowered: deploy.Deployed
    choice: storage_format.Choice
    max_memory: int | None
    forms: Mapping[str, RowForm] = field(default_factory=dict)
    """What was asked of single projections."""


def _forms(graph: ir.SpikingGraph, rows: Mapping[str, RowForm]) -> dict[str, RowForm]:
    """`rows` by projection."""
    projections = [node.name for node in graph.projections]
    known = dict(zip(projections, projections, strict=True))
    for name in projections:
        known[fan_out.population_behind(graph, name) or name] = name
    forms: dict[str, RowForm] = {}
    for name, form in rows.items():
        if name not in known:
            raise errors.UnknownNameError("layer of --rows", name, list(known))
        if forms.setdefault(known[name], form) != form:
            text = f"--rows {name}={form}: {known[name]} was given as another form too"
            raise errors.UsageError(text)
    return forms


Maker = Callable[[_Parts, Any], eventnet.Layer]


@dispatch.operation_table(ir.Node)
def layer_maker(node: ir.Node, graph: ir.SpikingGraph) -> Maker | None:
    """What makes the node's layer; None where it has none, but is part of another's."""
    raise ir.no_entry(node, "event export")


PARTS = (  # of others' layers
    *(ir.Input, ir.AvgPool, ir.AdaptiveAvgPool, ir.Flatten, ir.Scale, ir.ChannelNorm, ir.Readout),
)
layer_maker.on(*PARTS)(lambda node, graph: None)
layer_maker.on(ir.MaxPool)(lambda node, graph: _pool_layer)
layer_maker.on(ir.Merge)(lambda node, graph: _merge_layer)
layer_maker.on(ir.Scatter)(lambda node, graph: _scatter_layer)


@layer_maker.on(ir.Projection)
def _of_projection(node: ir.Projection, graph: ir.SpikingGraph) -> Maker | None:
    return None if fan_out.population_behind(graph, node.name) else _current_layer


@layer_maker.on(ir.Population)
def _of_population(node: ir.Population, graph: ir.SpikingGraph) -> Maker:
    (source,) = node.inputs
    if node.feedback is not None:
        return _recurrent_layer
    fused = graph[source].projects and fan_out.population_behind(graph, source)
    return _spiking_layer if fused else _population_layer


def _layers(parts: _Parts) -> Iterator[eventnet.Layer]:
    graph = parts.lowered.graph
    for node in graph.nodes:
        maker = layer_maker(node, graph)
        if maker is not None:
            yield maker(parts, node)


def _current_layer(parts: _Parts, node: ir.Projection) -> eventnet.CurrentLayer:
    return eventnet.CurrentLayer(name=node.name, **_synapses(parts, node.name))


def _merge_layer(parts: _Parts, node: ir.Merge) -> eventnet.MergeLayer:
    shape = parts.lowered.graph.shapes[node.name]
    return eventnet.MergeLayer(node.name, node.inputs, node.function, shape)


def _scatter_layer(parts: _Parts, node: ir.Scatter) -> eventnet.ScatterLayer:
    shapes, (source,) = parts.lowered.graph.shapes, node.inputs
    index = np.array(node.index, np.uint32)
    return eventnet.ScatterLayer(node.name, source, shapes[source], shapes[node.name], index)


def _synapses(
    parts: _Parts,
    projection: str,
    made: Callable[[dict[str, Any]], eventnet.SpikingLayer] | None = None,
) -> dict[str, Any]:
    """The fields that layers with synapses share; `live` is that of the currents.

    made: of these fields a layer with neurons; None for one without.
    """
    graph, linear = parts.lowered.graph, parts.lowered.operator(projection)
    operator, edge = linear.operator, graph.edges[linear.source]
    before = parts.lowered.live_values[linear.source]
    form = parts.forms.get(projection)
    stored = None if form is None else STORED_AS[form]
    what, possible = storage_format.possible_forms(operator)
    if stored is not None and stored not in possible:
        raise errors.UsageError(
            f"--rows {projection}={form}: {projection} is {what}; choose {' or '.join(possible)}"
        )
    current = fan_out.live_targets(graph, parts.lowered.model.neuron_masks, projection)
    shared: dict[str, Any] = {
        "source": linear.source,
        "edge": event_edge(edge)[0],
        "bound": event_edge(edge)[1],
        "live": None if current is None else storage_format.channel_last_mask(current),
    }

    def with_synapses(synapses: eventnet.Synapses) -> dict[str, Any]:
        limit = bounds.current_bound(synapses, shared["bound"] or 1) if graph.integers else None
        summed = None if limit is None else bounds.accumulator_for(limit)
        return {**shared, "synapses": synapses, "accumulator": summed}

    def on_planes(convolution: eventnet.ConvSynapses) -> bool:
        return made is not None and fits_planes(made(with_synapses(convolution)))

    synapses, weighed = storage_format.represent(
        operator,
        before,
        current,
        stored or parts.choice,
        parts.max_memory,
        on_planes,
        _usual_rate(graph, linear.source),
    )
    return {**with_synapses(synapses), "alternatives": weighed}


def event_edge(edge: ir.Edge) -> validate.Edge:
    """An edge as event files name it."""
    if edge.kind == "graded" and edge.bound is not None:
        return validate.edge_between(edge.low, edge.bound)
    return edge.kind, edge.size


def _usual_rate(graph: ir.SpikingGraph, source: str) -> float:
    """What rate is expected of a source before anything has run: pooled spikes are more."""
    node = graph[source]
    if isinstance(node, ir.MaxPool) and graph.edges[source].kind != "analog":
        return pooled_rate(_usual_rate(graph, node.inputs[0]), math.prod(node.kernel))
    return USUAL_RATE


def _spiking_layer(parts: _Parts, node: ir.Population) -> eventnet.SpikingLayer:
    (projection,) = node.inputs
    own = _neurons(parts, node)

    def made(shared: dict[str, Any]) -> eventnet.SpikingLayer:
        return eventnet.SpikingLayer(name=node.name, projection=projection, **shared | own)

    return made(_synapses(parts, projection, made))


def _population_layer(parts: _Parts, node: ir.Population) -> eventnet.PopulationLayer:
    (source,) = node.inputs
    shape = parts.lowered.graph.shapes[source]
    return eventnet.PopulationLayer(node.name, source, shape, **_neurons(parts, node))


def _recurrent_layer(parts: _Parts, node: ir.Population) -> eventnet.RecurrentLayer:
    (source,), back = node.inputs, node.feedback
    assert back is not None, node.name
    shape, own = parts.lowered.graph.shapes[source], _neurons(parts, node)
    del own["pattern"]  # a population with a feedback has none
    fed_back = eventnet.CurrentLayer(name=back.name, **_synapses(parts, back.name))
    return eventnet.RecurrentLayer(node.name, source, shape, feedback=fed_back, **own)


def _neurons(parts: _Parts, node: ir.Population) -> dict[str, Any]:
    """The fields that layers with neurons share."""
    mask, pattern = parts.lowered.live_values[node.name], parts.lowered.patterns.get(node.name)
    return {
        "neuron": parts.lowered.equations[node.name],
        "live": None if mask is None else storage_format.channel_last_mask(mask),
        "pattern": None if pattern is None else np.ascontiguousarray(pattern != 0).astype(np.uint8),
    }


def _pool_layer(parts: _Parts, node: ir.MaxPool) -> eventnet.PoolLayer:
    graph, (source,) = parts.lowered.graph, node.inputs
    shapes = graph.shapes[source], graph.shapes[node.name]
    window = node.kernel, node.stride, node.padding
    return eventnet.PoolLayer(node.name, source, *shapes, *window)


def _readout(lowered: deploy.Deployed) -> eventnet.ReadoutLayer:
    graph, node = lowered.graph, lowered.graph.readout
    operator = lowered.readout
    weight = operator.weight
    if weight is not None and not operator.space:
        weight = weight[:, storage_format.channel_last_order(operator.in_shape)]
    return eventnet.ReadoutLayer(
        name=node.name,
        source=lowered.operator(node.name).source,
        in_shape=operator.in_shape,
        classes=node.classes,
        space=operator.space,
        weight=None if weight is None else np.array(weight, order="C"),
        bias=None if operator.bias is None else operator.bias.copy(),
        votes=operator.votes,
        divisor=node.divisor(graph.shapes[node.inputs[0]], 1),
        over_time=node.over_time,
        neuron=lowered.membrane,
        unit=None if weight is None else node.unit,
    )
