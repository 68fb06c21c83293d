"""`count`: operations, sizes and energy estimates of one network on some samples, as a report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis import connectivity, other_tools, report, synops
from soul_deploy.base import Array, errors, reduction
from soul_deploy.data.given import Images, images_for
from soul_deploy.ir import SpikingGraph
from soul_deploy.lowering import deploy, fold_batch_norm
from soul_deploy.lowering.fan_out import Counted, CountedLayer
from soul_deploy.model.model import Model
from soul_deploy.runtime.ops import energy as estimates
from soul_deploy.runtime.ops.counters import LayerCounts

CHUNK = 64
"""Samples that run at once."""


@dataclass(frozen=True)
class Original:
    """The network before removal, which the denominators of a report are taken from.

    neurons: of each population. weights, synapses: of each projection and the readout's head, with
    none of them 0; average pooling is composed into the synapses, as it is into stored ones.
    """

    name: str
    neurons: Mapping[str, int]
    weights: Mapping[str, int]
    synapses: Mapping[str, int]


def original_of(name: str, model: Model) -> Original:
    """The denominators that `model` gives."""
    graph = model.graph
    neurons = {p.name: int(np.prod(graph.shapes[p.name])) for p in graph.populations}
    weights = {node: s.weight.size for node, s in deploy.lower(model).synapses.items()}
    return Original(name, neurons, weights, connectivity.dense_synapses(graph, head=True))


@dataclass(frozen=True, kw_only=True)
class EnergyChoice:
    """Which estimates: presets, optional terms, memory models, form of the rows.

    Raises UsageError for a name that is not known.
    """

    presets: tuple[str, ...] = tuple(estimates.ARITHMETIC)
    terms: tuple[str, ...] = ()
    memories: tuple[str, ...] = tuple(estimates.MEMORY)
    rows: estimates.Rows | None = None

    def __post_init__(self) -> None:
        for preset in self.presets:
            estimates.ops_energy({}, preset, self.terms)
        for memory in self.memories:
            estimates.memory_energy({}, {}, memory)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was run: the file, its digest and size (a model in memory has none), and the data."""

    path: str = "model"
    sha256: str = ""
    artifact_bytes: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


def count(
    model: Model,
    images: Images,
    *,
    labels: Tensor | Array | None = None,
    original: Model | Original | None = None,
    energy: EnergyChoice | None = None,
    measured: Measured | None = None,
) -> report.OpsReport:
    """Run `model` on images (B, C, H, W) or (T, B, C, H, W), and count everything.

    images: as `images_for` takes them. labels: (B,), to say how many samples get their class.
    original: the network that rates and shares are of; None: the model itself.
    Raises UsageError if the original lacks a layer of the model or has fewer neurons, weights or
    synapses in one, VerificationError if a count breaks a bound, and what `images_for` raises.
    """
    if not isinstance(original, Original):
        original = original_of("itself" if original is None else "original", original or model)
    energy, measured = energy or EnergyChoice(), measured or Measured()
    given, axis = images_for(model, images)
    layers, compat, scores = _counted(model, given, axis, original, energy.rows)
    activities = {layer.name: layer.activity for layer in layers}
    arrays = {layer.name: layer.arrays for layer in layers}
    right = 0 if labels is None else int((scores.argmax(1) == torch.as_tensor(labels)).sum())
    return report.OpsReport(
        path=measured.path,
        sha256=measured.sha256,
        stage=model.info.stage,
        data={**measured.data, **({} if labels is None else {"correct": right})},
        samples=given.shape[axis],
        time_steps=model.graph.time_steps,
        original=original.name,
        layers=layers,
        compat=compat,
        footprint=sum(array.nbytes for array in model.state.values()),
        artifact_bytes=measured.artifact_bytes,
        integers=bool(model.graph.integers),
        ops=tuple(estimates.ops_energy(activities, name, energy.terms) for name in energy.presets),
        memory=tuple(estimates.memory_energy(activities, arrays, name) for name in energy.memories),
    )


def _counted(
    model: Model, images: Tensor, axis: int, original: Original, rows: estimates.Rows | None
) -> tuple[tuple[report.LayerReport, ...], other_tools.CompatCounts, Tensor]:
    """Entries in the graph's order, the whole network's counts by other tools' rules, scores."""
    graph = model.graph
    _require_same_layers(graph, original)
    trimmed, compat = deploy.lower(model).trimmed, other_tools.compat_model(model, images)
    fired, scores = _recorded(model, images, axis)
    run = _Run(model, trimmed, original, images.shape[axis], axis == 0, rows, fired)
    counts = synops.count_model(trimmed.model, images)
    order = {node.name: index for index, node in enumerate(run.graph.nodes)}
    order |= {back.name: order[name] for name, back in run.graph.feedbacks.items()}
    entries = sorted(trimmed.counted, key=lambda entry: order[entry.name])
    layers = tuple(run.layer(entry, counts[entry.name]) for entry in entries)
    for layer in layers:
        _require_fewer(original, layer.name, "weights", layer.weights_nz, layer.weights)
        _require_fewer(original, layer.name, "synapses", layer.synapses, layer.synapses_dense)
        if layer.name in compat:
            _require_ordered(layer, compat[layer.name])
    return layers, sum(compat.values(), other_tools.CompatCounts()), scores


def _require_same_layers(graph: SpikingGraph, original: Original) -> None:
    for node in graph.populations:
        if node.name not in original.neurons:
            raise _not_the_original(original, f"has no population {node.name!r}")
        here, there = math.prod(graph.shapes[node.name]), original.neurons[node.name]
        _require_fewer(original, node.name, "neurons", here, there)
    for name in connectivity.weighed_names(graph):
        if name not in original.synapses:
            raise _not_the_original(original, f"has no projection {name!r}")
    if graph.readout.name not in original.synapses:
        raise _not_the_original(original, f"has no readout {graph.readout.name!r}")


def _require_fewer(original: Original, name: str, what: str, here: int, there: int) -> None:
    if here > there:
        text = f"has {there:,} {what} in {name}, and this network {here:,}"
        raise _not_the_original(original, text)


def _not_the_original(original: Original, found: str) -> errors.UsageError:
    return errors.UsageError(
        f"{original.name} {found}; firing rates and sparsities need the network that this one came "
        "from. Give it first, or with --original"
    )


def _require_ordered(layer: report.LayerReport, compat: other_tools.CompatCounts) -> None:
    """On the same spikes, each rule that leaves out more counts no more."""
    if layer.edge is None or layer.edge.kind != "spike" or layer.op == "readout":
        return
    c = layer.counts
    if compat.neurobench_acs == 0 and compat.neurobench_macs:
        return  # average pooling is composed into it: others see fewer, larger values
    order = [c.synops_events, compat.neurobench_acs, compat.spikingjelly_synops]
    if order != sorted(order):
        raise errors.VerificationError(
            f"{layer.name}: SynOps {order[0]}, with masked targets {order[1]}, with zero weights "
            f"{order[2]} must not fall; the counts are wrong. Please report this with the file"
        )


@torch.no_grad()
def _recorded(model: Model, images: Tensor, axis: int) -> tuple[dict[str, int], Tensor]:
    """Spikes of every population, with neurons that nothing reads and constant-pattern channels,
    and the class scores (B, classes).
    """
    module, scores = model.module(), []
    totals = {node.name: 0 for node in model.graph.populations}
    for part in torch.split(images, CHUNK, dim=axis):
        record = module.record(part)
        scores.append(record.logits)
        for name, spikes in record.spikes.items():
            totals[name] += int(spikes.sum())
    return totals, torch.cat(scores)


@dataclass(frozen=True)
class _Run:
    """Recorded values and counts that the entries of a report are computed from."""

    model: Model
    trimmed: deploy.Deployed
    original: Original
    samples: int
    static: bool
    rows: estimates.Rows | None
    fired: Mapping[str, int]

    @property
    def graph(self) -> SpikingGraph:
        return self.form.graph

    @property
    def form(self) -> deploy.Deployed:
        return self.trimmed.composed

    @cached_property
    def dense(self) -> dict[str, other_tools.DenseOps]:
        """Of the model's projections, and of what else is one where it runs."""
        return other_tools.dense_ops(self.graph) | other_tools.dense_ops(self.model.graph)

    @cached_property
    def once(self) -> frozenset[str]:
        """Layers that are executed once per image; those of events are at each step."""
        static = self.static and self.graph.input.events is None
        return frozenset(self.graph.static if static else ())

    def layer(self, entry: Counted, counts: LayerCounts) -> report.LayerReport:
        if entry.layer is not None:
            return self._projection(entry.layer, counts)
        size = 4 * math.prod(self.graph.shapes[entry.name])
        sizes = {} if entry.population is None else {"membranes": size, "events": size}
        return report.LayerReport(
            name=entry.name,
            op=self.graph[entry.name].op,
            counts=counts,
            activity=estimates.Activity(counts, leaky=self._leaky(entry.name)),
            arrays=estimates.Arrays(sizes, "explicit"),
            **self._neurons(entry.population),
        )

    def _projection(self, entry: CountedLayer, counts: LayerCounts) -> report.LayerReport:
        name, source, graph = entry.name, entry.linear.source, self.graph
        readout = name == graph.readout.name
        once = source in self.once and not readout
        head = len(reduction.weighings(graph.readout.weighing, graph.time_steps))
        steps = 1 if once else head if readout else graph.time_steps
        executions = self.samples * steps
        before, fan_out = self.trimmed.live_values[source], entry.fanout
        if before is not None and before.shape == fan_out.shape:
            fan_out = fan_out * before
        synapses = self.trimmed.synapses.get(name)
        kept = 0 if synapses is None else int(np.count_nonzero(synapses.weight))
        operator = entry.linear.operator.readout
        sums = operator is not None and operator.counts_spikes
        graded = (entry.edge.kind == "graded" and entry.edge.size != 1) or sums
        analog = (0, 0, 0)
        if entry.edge.kind == "analog":
            read = executions * math.prod(graph.shapes[source])
            analog = (read, executions * entry.targets, self.samples * kept)
        return report.LayerReport(
            name=name,
            op=graph[name].op,
            edge=entry.edge,
            static=once,
            counts=counts,
            executions=executions,
            dense=self.dense[name],
            synapses=int(fan_out.sum()),
            synapses_dense=self.original.synapses.get(name, int(fan_out.sum())),
            weights_nz=kept,
            weights=self.original.weights.get(name, 0),
            activity=estimates.Activity(
                counts, graded, self._leaky(name if readout else entry.population), analog
            ),
            arrays=self._arrays(entry, int(fan_out.sum()), self.form.synapses.get(name)),
            **(self._charged() if readout else self._neurons(entry.population)),
        )

    def _charged(self) -> Any:
        """As `_neurons`, of those behind the head, whose spikes nothing reads."""
        node = self.graph.readout
        count = 0 if node.neuron is None else node.classes
        return {"neurons": count, "neurons_original": count, "activation": (0, 0)}

    def _arrays(
        self, entry: CountedLayer, stored: int, synapses: fold_batch_norm.DeployedWeights | None
    ) -> estimates.Arrays:
        """Explicit rows: 4 bytes each of index and weight. Implicit: the weights, zeros too."""
        shapes = self.graph.shapes
        read, written = (math.prod(shapes[name]) for name in (entry.linear.source, entry.name))
        weights = 0 if synapses is None else synapses.weight.size
        rows: estimates.Rows = "explicit" if 2 * stored <= weights else "implicit"
        rows = rows if self.rows is None else self.rows
        bias = None if synapses is None else synapses.bias
        return estimates.Arrays(
            {
                "events": 4 * max(read, written),
                "pointers": 4 * (read + 1),
                "synapses": 8 * stored if rows == "explicit" else 4 * weights,
                "membranes": 4 * entry.targets,
                "biases": 0 if bias is None else 4 * len(bias),
                "inputs": 4 * read,
            },
            rows,
        )

    def _leaky(self, population: str | None) -> bool:
        readout = self.graph.readout
        if population == readout.name:
            return readout.neuron is not None and readout.neuron.family != "if"
        return any(p.name == population and p.neuron.family != "if" for p in self.graph.populations)

    def _neurons(self, population: str | None) -> Any:
        """Live neurons, the original's, and spikes of all outputs, for the population behind."""
        if population is None:
            return {"neurons": 0, "neurons_original": 0, "activation": (0, 0)}
        mask = self.trimmed.model.neuron_masks.get(population)
        size = math.prod(self.graph.shapes[population])
        every = self.original.neurons[population]
        return {
            "neurons": size if mask is None else int(mask.sum()),
            "neurons_original": every,
            "activation": (self.fired[population], self.samples * self.graph.time_steps * every),
        }
