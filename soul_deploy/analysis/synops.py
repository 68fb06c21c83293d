"""Operation counts of the PyTorch reference, as exact integers.

SynOps are the product of the fan-out map with the spikes: sums of 64-bit integers, in whatever
order. Definitions: docs/counting.md.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base import Array, dispatch, reduction
from soul_deploy.lowering import deploy, fan_out, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.runtime.ops import counters


def layer_steps(
    layer: fan_out.CountedLayer, source: Tensor, spikes_out: Tensor | None
) -> counters.StepCounts:
    """Counts of one layer by step and sample.

    source: what the layer's source node holds, (T, B, *in_shape), or (B, *in_shape) for a static
    image. spikes_out: (T, B, *out_shape) of the population behind, or None.
    Raises VerificationError for values that the edge cannot hold, or counts that cannot be.
    """
    operator = layer.linear.operator
    edge = layer.edge
    counters.require_edge_values(layer.name, source.numpy(), edge.bound, edge.low)
    if operator.readout is not None:
        return _readout_steps(layer, operator.readout, source)
    source = source.abs() if edge.low else source
    counted = _synapse_steps(layer, operator, source)
    if spikes_out is not None:
        driven = spikes_out[:, :, : operator.out_shape[0]]  # not the constant-pattern channels
        counted += _neuron_steps(driven, layer.targets)
    slots = len(source.reshape(-1, *operator.in_shape))
    most = max(edge.bound or 0, -edge.low) if edge.low else edge.bound
    limits = (most, int(layer.fanout.sum()), layer.targets, operator.most_targets)
    counters.require_bounds(layer.name, counted.total(), counters.CountLimits(slots, *limits))
    return counted


def _synapse_steps(
    layer: fan_out.CountedLayer, operator: linear_operators.LinearOperator, source: Tensor
) -> counters.StepCounts:
    batch = source.shape[-len(operator.in_shape) - 1]
    values = source.reshape(-1, *operator.in_shape)
    steps = len(values) // batch if batch else 1
    reach = torch.from_numpy(layer.fanout).reshape(-1)
    events = (values != 0).flatten(1).to(torch.int64)
    biased = np.full((steps, batch), layer.biased, np.int64)
    synapses = _by_step(events @ reach, steps)
    if layer.edge.kind == "analog":
        return counters.StepCounts({"macs_effective": synapses, "bias_adds": biased})
    whole = values.flatten(1).to(torch.int64)
    counted = {
        "events_in": events.sum(1),
        "spikes_in": whole.sum(1),
        "synops": whole @ reach,
        "touched": _touched(operator, values != 0, layer.live),
    }
    by_step = {name: _by_step(counts, steps) for name, counts in counted.items()}
    return counters.StepCounts(by_step | {"synops_events": synapses, "bias_adds": biased})


def _by_step(counts: Tensor, steps: int) -> Array:
    """(steps · B,) to int64 (steps, B)."""
    return np.asarray(counts.to(torch.int64).reshape(steps, -1).numpy())


def _neuron_steps(spikes: Tensor, neurons: int) -> counters.StepCounts:
    """Updates and spikes of (T, B, ...)."""
    steps, batch = spikes.shape[:2]
    sizes = spikes if spikes.dtype == torch.bool else spikes.abs()
    fired: Array = sizes.flatten(2).sum(2).to(torch.int64).numpy()
    updates = np.full((steps, batch), neurons, np.int64)
    return counters.StepCounts({"neuron_updates": updates, "spikes_out": fired})


def _touched(
    operator: linear_operators.LinearOperator, events: Tensor, live: Array | None
) -> Tensor:
    """Live targets that at least one event reaches, per image; in chunks, to bound memory."""
    totals = [torch.zeros(0, dtype=torch.int64)]
    for part in torch.split(events, 64):
        reached = (fan_out.arrivals(operator, part) > 0.5).reshape(len(part), *operator.out_shape)
        if live is not None:
            reached = reached & torch.from_numpy(np.array(live))
        totals.append(reached.flatten(1).sum(1))
    return torch.cat(totals)


def _readout_steps(
    layer: fan_out.CountedLayer, operator: linear_operators.ReadoutOperator, source: Tensor
) -> counters.StepCounts:
    """The head's edge is graded: it weighs the counts over time (and space), or those of one step;
    of a maximum over time, those of each step.
    """
    sums = readout_sums(operator, source)
    counts = sums.flatten(0, 1).flatten(1).abs()
    reach = torch.from_numpy(layer.fanout).reshape(-1)
    events = (counts != 0).to(torch.int64)
    touched = torch.zeros(len(counts))
    if operator.weight is not None:
        touched = (events.double() @ fan_out.nonzero(operator.weight).t() > 0.5).sum(1)
    counted = {
        "events_in": events.sum(1),
        "spikes_in": counts.sum(1),
        "synops_events": events @ reach,
        "synops": counts @ reach,
        "touched": touched,
        "bias_adds": torch.full((len(counts),), layer.biased),
    }
    if operator.charged:  # whose spikes, if any, nothing reads
        counted["neuron_updates"] = torch.full((len(counts),), operator.charged)
    by_step = {name: _by_step(values, len(sums)) for name, values in counted.items()}
    return counters.StepCounts(by_step)


def readout_sums(operator: linear_operators.ReadoutOperator, source: Tensor) -> Tensor:
    """What the head weighs, whole numbers (weighings, B, C, ...) of spikes (T, B, C, ...): one sum
    over time, the last step, or each step; summed over space where the readout does.
    """
    whole, weighings = source.to(torch.int64), reduction.weighings(operator.weighing, len(source))
    sums = torch.stack([whole[at].sum(0) for at in weighings])
    return sums.sum(dim=(3, 4)) if operator.space else sums


def counted_pooling_steps(layer: fan_out.CountedPooling, source: Tensor) -> counters.StepCounts:
    """Nonzero inputs of all windows; source (T, B, C, H, W), or (B, C, H, W) for a static image."""
    values = source if source.dim() == 5 else source[None]
    events = (values != 0).double().flatten(0, 1)
    # A sum over windows: of a mean, only the divisor is another.
    sums = F.avg_pool2d(events, layer.kernel, layer.stride, layer.padding, divisor_override=1)
    return counters.StepCounts({"pool_ops": _by_step(sums.flatten(1).sum(1).round(), len(values))})


@torch.no_grad()
def count_model(model: Model, images: Tensor, chunk: int = 64) -> dict[str, counters.LayerCounts]:
    """Counts of `model` on images (B, C, H, W) or (T, B, C, H, W), summed: per projection, per
    population without a projection of its own, per max pooling, and of the readout.
    """
    module = model.module()
    layers = deploy.lower(model).counted
    totals = {layer.name: counters.LayerCounts() for layer in layers}
    axis = module.batch_axis(images)
    for part in torch.split(images, chunk, dim=axis):
        for name, counts in count_batch(module, layers, part).items():
            totals[name] += counts
    return totals


def count_batch(
    module: GraphModule, layers: Sequence[fan_out.Counted], images: Tensor
) -> dict[str, counters.LayerCounts]:
    """Counts per layer for one batch, (B, C, H, W) static or (T, B, C, H, W)."""
    graph = module.graph
    known = {graph.input.name: module.as_signal(images)}
    names = {name for layer in layers for name in fan_out.needed_values(layer)}
    values: dict[str, Signal] = module.evaluate(known, sorted(names))
    tensors = {name: values[name].tensor for name in names}
    return {layer.name: count_steps(layer, tensors).total() for layer in layers}


@dispatch.operation_table(fan_out.Counted)
def count_steps(layer: fan_out.Counted, values: Mapping[str, Tensor]) -> counters.StepCounts:
    """Counts of one entry by step and sample, from the values of the nodes it needs."""
    raise count_steps.unknown(layer)


@count_steps.on(fan_out.CountedPopulation)
def _(layer: fan_out.CountedPopulation, values: Mapping[str, Tensor]) -> counters.StepCounts:
    neurons = int(np.prod(layer.shape) if layer.live is None else layer.live.sum())
    driven = values[layer.name][:, :, : layer.shape[0]]  # not the constant-pattern channels
    return _neuron_steps(driven, neurons)


@count_steps.on(fan_out.CountedPooling)
def _(layer: fan_out.CountedPooling, values: Mapping[str, Tensor]) -> counters.StepCounts:
    return counted_pooling_steps(layer, values[layer.source])


@count_steps.on(fan_out.CountedLayer)
def _(layer: fan_out.CountedLayer, values: Mapping[str, Tensor]) -> counters.StepCounts:
    spikes = None if layer.population is None else values[layer.population]
    return layer_steps(layer, layer.arriving(values[layer.linear.source]), spikes)
