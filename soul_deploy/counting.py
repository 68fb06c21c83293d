"""Operation counts of the PyTorch golden, as exact integers.

The fan-out map of a projection holds, for each presynaptic neuron, how many nonzero synapses reach
a target inside the output. SynOps are its product with the spikes. All convolutions here are of
zeros and ones in float64 on the CPU, so every sum is an exact integer below 2^53.
Definitions: docs/counting.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.composing import Composed, ConvOperator, MatrixOperator, ReadoutOperator, compose
from soul_deploy.folding import Synapses, fold
from soul_deploy.graph import Edge, Merge, Population, Shape, SpikingGraph
from soul_deploy.modelfile import Model
from soul_deploy.module import GraphModule, Signal
from soul_deploy.runtime.counters import LayerCounts
from soul_deploy.runtime.files import Array


@dataclass(frozen=True)
class CountedLayer:
    """A projection (or the readout) with what feeds it, and the population that it alone feeds.

    live: bool of the operator's output shape; targets that are masked receive nothing.
    """

    name: str
    composed: Composed
    edge: Edge
    population: str | None
    live: Array | None = None


@dataclass(frozen=True)
class CountedPopulation:
    """A population without a projection of its own: a merge of currents feeds it, for example.

    shape: of its current. live: bool of that shape, or None: all neurons.
    """

    name: str
    shape: Shape
    live: Array | None = None


Counted: TypeAlias = CountedLayer | CountedPopulation


def counted_layers(
    graph: SpikingGraph,
    folded: Mapping[str, Synapses],
    neuron_masks: Mapping[str, Array] | None = None,
) -> tuple[CountedLayer, ...]:
    """Every projection, then the readout, in execution order."""
    layers = []
    for node in (*graph.projections, graph.readout):
        composed = compose(graph, folded, node.name)
        edge = graph.edges[composed.source]
        live = live_targets(graph, neuron_masks or {}, node.name)
        behind = population_behind(graph, node.name)
        layers.append(CountedLayer(node.name, composed, edge, behind, live))
    return tuple(layers)


def counted_populations(
    graph: SpikingGraph, neuron_masks: Mapping[str, Array] | None = None
) -> tuple[CountedPopulation, ...]:
    """Every population that no entry of `counted_layers` has, in execution order."""
    found = []
    for node in graph.populations:
        source = node.inputs[0]
        if source in {p.name for p in graph.projections} and population_behind(graph, source):
            continue
        shape = graph.shapes[source]
        live = (neuron_masks or {}).get(node.name)
        found.append(
            CountedPopulation(node.name, shape, None if live is None else live[: shape[0]])
        )
    return tuple(found)


def population_behind(graph: SpikingGraph, projection: str) -> str | None:
    """The population that a projection feeds, if it feeds nothing else."""
    consumers = graph.consumers[projection]
    alone = len(consumers) == 1 and isinstance(graph[consumers[0]], Population)
    return consumers[0] if alone else None


def live_targets(
    graph: SpikingGraph, neuron_masks: Mapping[str, Array], current: str
) -> Array | None:
    """Where a current reaches an unmasked neuron, directly or through merges; None: everywhere.

    bool of the current's shape. What else reads a current reads all of it.
    """
    shape = graph.shapes[current]
    live = np.zeros(shape, np.bool_)
    for name in graph.consumers[current]:
        node = graph[name]
        below = None
        if isinstance(node, Population):
            below = neuron_masks.get(name)
        elif isinstance(node, Merge):
            below = live_targets(graph, neuron_masks, name)
        if below is None:
            return None
        live |= below[: shape[0]]  # generated channels have no current
    return None if live.all() else live


def fanout(
    operator: ConvOperator | MatrixOperator | ReadoutOperator, live: Array | None = None
) -> Array:
    """Synapses onto live targets from each input: int64 of the input's shape.

    For a readout that sums over space first, (C,). live: bool of the output's shape; None: all.
    """
    if isinstance(operator, ConvOperator):
        return _conv_fanout(operator, live)
    if isinstance(operator, ReadoutOperator):
        shape = operator.in_shape[:1] if operator.space else operator.in_shape
        if operator.weight is None:
            return np.zeros(shape, np.int64)
        return _columns(operator.weight, shape)
    weight = operator.weight
    return _columns(weight if live is None else weight[live.reshape(-1)], operator.in_shape)


def _columns(weight: Array, shape: Shape) -> Array:
    counts: Array = (weight != 0).sum(axis=0, dtype=np.int64)
    return counts.reshape(shape)


def _nonzero(weight: Array) -> Tensor:
    return torch.from_numpy((weight != 0).astype(np.float64))


def _conv_fanout(op: ConvOperator, live: Array | None) -> Array:
    """Transposed convolution of ones: how many live outputs each input position reaches."""
    targets = torch.ones(1, *op.out_shape, dtype=torch.float64)
    if live is not None:
        targets = torch.from_numpy(live.astype(np.float64))[None]
    full = F.conv_transpose2d(
        targets, _nonzero(op.weight), None, op.stride, 0, 0, op.groups, op.dilation
    )[0]
    result = torch.zeros(op.in_shape, dtype=torch.int64)
    height, width = (min(op.reach[i], op.in_shape[1 + i]) for i in (0, 1))
    inside = full[:, op.padding[0] :, op.padding[1] :][:, :height, :width]
    result[:, : inside.shape[1], : inside.shape[2]] = inside.round().to(torch.int64)
    return result.numpy()


def arrivals(op: ConvOperator | MatrixOperator, events: Tensor) -> Tensor:
    """How many events reach each target: events (N, *in_shape) of 0/1 -> (N, *out_shape)."""
    if isinstance(op, MatrixOperator):
        return events.flatten(1).double() @ _nonzero(op.weight).t()
    x = events[:, :, : op.reach[0], : op.reach[1]].double()
    padding: list[int] = []
    for axis in (1, 0):
        extent = op.dilation[axis] * (op.weight.shape[2 + axis] - 1) + 1
        needed = (op.out_shape[1 + axis] - 1) * op.stride[axis] + extent
        before = op.padding[axis]
        padding += [before, needed - before - x.shape[2 + axis]]
    x = F.pad(x, padding)
    return F.conv2d(x, _nonzero(op.weight), None, op.stride, 0, op.dilation, op.groups)


def count_layer(layer: CountedLayer, source: Tensor, spikes_out: Tensor | None) -> LayerCounts:
    """Counts of one layer, summed over time and samples.

    source: what the layer's source node holds, (T, B, *in_shape), or (B, *in_shape) for a static
    image. spikes_out: (T, B, *out_shape) of the population behind, or None.
    """
    operator = layer.composed.operator
    if isinstance(operator, ReadoutOperator):
        return _count_readout(operator, source)
    updates, fired = 0, 0
    if spikes_out is not None:
        current = spikes_out[:, :, : operator.out_shape[0]]  # generated channels are not updated
        neurons = int(np.prod(operator.out_shape) if layer.live is None else layer.live.sum())
        updates, fired = len(current) * current.shape[1] * neurons, int(current.sum())
    reach = torch.from_numpy(fanout(operator, layer.live))
    nonzero = source != 0
    events = nonzero.reshape(-1, *operator.in_shape)
    synapses = int((events.to(torch.int64).sum(0) * reach).sum())
    if layer.edge.kind == "analog":
        return LayerCounts(macs_effective=synapses, neuron_updates=updates, spikes_out=fired)
    values = source.reshape(-1, *operator.in_shape).to(torch.int64).sum(0)
    return LayerCounts(
        events_in=int(nonzero.sum()),
        spikes_in=int(values.sum()),
        synops_events=synapses,
        synops=int((values * reach).sum()),
        touched=_touched(operator, events, layer.live),
        neuron_updates=updates,
        spikes_out=fired,
    )


def _touched(operator: ConvOperator | MatrixOperator, events: Tensor, live: Array | None) -> int:
    """(Image, live target) pairs that at least one event reaches; in chunks, to bound memory."""
    total = 0
    for part in torch.split(events, 64):
        reached = (arrivals(operator, part) > 0.5).reshape(len(part), *operator.out_shape)
        if live is not None:
            reached = reached & torch.from_numpy(np.array(live))
        total += int(reached.sum().item())
    return total


def _count_readout(operator: ReadoutOperator, source: Tensor) -> LayerCounts:
    """The head's edge is graded: its inputs are the counts over time (and space)."""
    counts = source.to(torch.int64).sum(0)
    if operator.space:
        counts = counts.sum(dim=(2, 3))
    reach = torch.from_numpy(fanout(operator))
    events = counts != 0
    touched = 0
    if operator.weight is not None:
        touched = int((events.flatten(1).double() @ _nonzero(operator.weight).t() > 0.5).sum())
    return LayerCounts(
        events_in=int(events.sum()),
        spikes_in=int(counts.sum()),
        synops_events=int((events * reach).sum()),
        synops=int((counts * reach).sum()),
        touched=touched,
    )


def count_population(layer: CountedPopulation, spikes_out: Tensor) -> LayerCounts:
    """Updates and spikes of (T, B, *shape), generated channels behind them left out."""
    current = spikes_out[:, :, : layer.shape[0]]
    neurons = int(np.prod(layer.shape) if layer.live is None else layer.live.sum())
    updates = len(current) * current.shape[1] * neurons
    return LayerCounts(neuron_updates=updates, spikes_out=int(current.sum()))


def counted_nodes(model: Model) -> tuple[Counted, ...]:
    """What `model` is counted by: projections, populations without one, the readout."""
    folded = fold(model.graph, model.state, model.channel_masks)
    *projections, readout = counted_layers(model.graph, folded, model.neuron_masks)
    return (*projections, *counted_populations(model.graph, model.neuron_masks), readout)


@torch.no_grad()
def count_model(model: Model, images: Tensor, chunk: int = 64) -> dict[str, LayerCounts]:
    """Counts of `model` on images (B, C, H, W), summed: per projection, per population without a
    projection of its own, and of the readout.
    """
    module = model.module()
    layers = counted_nodes(model)
    totals = {layer.name: LayerCounts() for layer in layers}
    for part in torch.split(images, chunk):
        for name, counts in count_batch(module, layers, part).items():
            totals[name] += counts
    return totals


def count_batch(
    module: GraphModule, layers: Sequence[Counted], images: Tensor
) -> dict[str, LayerCounts]:
    """Counts per layer for one batch, (B, C, H, W) static or (T, B, C, H, W)."""
    graph = module.graph
    known = {graph.input.name: module.as_signal(images)}
    names = {name for layer in layers for name in needed_values(layer)}
    values: dict[str, Signal] = module.evaluate(known, sorted(names))
    return {
        layer.name: count_one(layer, {name: values[name].tensor for name in needed_values(layer)})
        for layer in layers
    }


def needed_values(layer: Counted) -> tuple[str, ...]:
    """The nodes whose values `count_one` takes."""
    if isinstance(layer, CountedPopulation):
        return (layer.name,)
    behind = () if layer.population is None else (layer.population,)
    return (layer.composed.source, *behind)


def count_one(layer: Counted, values: Mapping[str, Tensor]) -> LayerCounts:
    """Counts of one entry, from the values of the nodes it needs."""
    if isinstance(layer, CountedPopulation):
        return count_population(layer, values[layer.name])
    spikes = None if layer.population is None else values[layer.population]
    return count_layer(layer, values[layer.composed.source], spikes)
