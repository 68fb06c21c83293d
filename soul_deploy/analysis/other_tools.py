"""The same network counted by other tools' rules, for comparison with their numbers.

Tools look at layers: each projection on its own input, with batch norm folded, before average
pooling is composed into it. Where they decide by the data whether a layer works on spikes, we
decide by the graph. The rules are in docs/counting.md; the sources:

- NeuroBench 2.x, metrics/workload/synaptic_operations.py: nonzero inputs × nonzero weights, inside
  the output; additions on spikes, multiplications otherwise
- SpikingJelly 2.x, op_counter: spikes × all weights inside the output (SynOps); layers without
  spikes are dense multiplications, padding among them
- Shi et al., ICLR 2024, published utils.py, SOPMonitor: value × nonzero weights × unmasked targets;
  first layer and head left out
"""

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array, dispatch, errors, reduction
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, Signal

ZERO = Fraction(0)


@dataclass(frozen=True)
class DenseOps:
    """Operations of one execution of a layer with all weights kept and all inputs nonzero.

    Each projection is taken on its own input, pooled where the graph pools; what synapses a network
    could have, average pooling composed, is `soul_deploy.analysis.connectivity.dense_synapses`.

    valid   taps inside the input only
    padded  taps on the padding too: K² · C_in / groups · C_out · OH · OW ("MACs" of thop, ptflops)
    """

    valid: int
    padded: int


def dense_ops(graph: ir.SpikingGraph) -> dict[str, DenseOps]:
    """Of every projection and feedback, and of one execution of the readout's head, by name."""
    readout = graph.readout
    weights = graph.shapes[readout.inputs[0]][0] * readout.classes if readout.linear else 0
    backs = graph.feedbacks.values()
    found = {node.name: dense_ops_of(node, graph) for node in (*graph.projections, *backs)}
    return found | {readout.name: DenseOps(weights, weights)}


@dispatch.operation_table(ir.Projection)
def dense_ops_of(node: ir.Projection, graph: ir.SpikingGraph) -> DenseOps:
    """The operations of one projection."""
    raise ir.no_entry(node, "counting of dense operations")


@dense_ops_of.on(ir.Convolution)
def _convolution(node: ir.Convolution, graph: ir.SpikingGraph) -> DenseOps:
    shape, out = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    pairs = node.in_channels // node.groups * node.channels
    kernel = node.kernel[0] * node.kernel[1]
    valid = pairs * _taps(node, 0, shape[1], out[1]) * _taps(node, 1, shape[2], out[2])
    return DenseOps(valid, pairs * kernel * out[1] * out[2])


@dense_ops_of.on(ir.Linear)
def _linear(node: ir.Linear, graph: ir.SpikingGraph) -> DenseOps:
    return DenseOps(node.in_features * node.features, node.in_features * node.features)


@dense_ops_of.on(ir.OneToOne)
def _one_to_one(node: ir.OneToOne, graph: ir.SpikingGraph) -> DenseOps:
    neurons = math.prod(graph.shapes[node.name])
    return DenseOps(neurons, neurons)


def _taps(node: ir.Convolution, axis: int, size: int, out: int) -> int:
    """Pairs (output position, kernel index) inside an input of `size` along one axis."""
    stride, padding, dilation = node.stride[axis], node.padding[axis], node.dilation[axis]
    pairs = product(range(out), range(node.kernel[axis]))
    return sum(0 <= o * stride - padding + k * dilation < size for o, k in pairs)


@dataclass(frozen=True, kw_only=True)
class CompatCounts:
    """One layer's, or a network's, counts by other rules, summed over samples and steps."""

    neurobench_acs: int = 0
    neurobench_macs: int = 0
    neurobench_dense: int = 0
    spikingjelly_synops: int = 0
    spikingjelly_macs: int = 0
    upr_sops: Fraction = ZERO

    def __add__(self, other: "CompatCounts") -> "CompatCounts":
        names = [field.name for field in fields(self)]
        return CompatCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@torch.no_grad()
def compat_model(model: Model, images: Tensor, chunk: int = 64) -> dict[str, CompatCounts]:
    """Counts by layer, of every projection and the readout, on images (B, C, H, W) or
    (T, B, C, H, W); masks as the model has them, nothing left out besides.
    """
    module, rules = model.module(), _rules(model)
    axis = module.batch_axis(images)
    totals = dict.fromkeys(rules, CompatCounts())
    for part in torch.split(images, chunk, dim=axis):
        known = {model.graph.input.name: module.as_signal(part)}
        for name, rule in rules.items():
            known |= module.evaluate(known, [rule.source])
            totals[name] += rule.count(module, known[rule.source])
    return totals


def compat_layer(model: Model, name: str, signal: Signal) -> CompatCounts:
    """Counts of one projection, or of the readout's head, for what its source node held."""
    return _rules(model)[name].count(model.module(), signal)


@dataclass(frozen=True)
class _Rule:
    """What one layer is counted by; the maps are int64 in the input's shape.

    scale: a number that makes what arrives whole, where what `source` holds is: the area of the
    average pooling windows between them, or 1; None: constants between them leave none.
    plain: nothing between them multiplies by constants.
    delayed: what arrives was sent at the step before.
    every: all weights; stored: nonzero ones; live: nonzero ones onto unmasked targets.
    """

    graph: ir.SpikingGraph
    node: ir.Node
    source: str
    scale: int | None
    plain: bool
    dense: DenseOps
    every: Array
    stored: Array
    live: Array
    delayed: bool = False

    def count(self, module: GraphModule, signal: Signal) -> CompatCounts:
        """The layer's counts for what its source node held."""
        values, edge = self._arriving(module, signal), self.graph.edges[self.source]
        head, executions = self.node is self.graph.readout, len(values)
        space = len(self.graph.shapes[self.node.inputs[0]]) == 3
        sums = head and (space or self.graph.readout.weighing == "sum")
        binary = edge.kind == "spike" and self.scale == 1 and self.plain and not sums
        maps = (self.every, self.stored, self.live)
        every, stored, live = (torch.from_numpy(np.array(array)).reshape(-1) for array in maps)
        events = (values != 0).flatten(1).to(torch.int64).sum(0)
        effective = int((events * stored).sum())
        found = CompatCounts(
            neurobench_acs=effective if binary else 0,
            neurobench_macs=0 if binary else effective,
            neurobench_dense=executions * self.dense.valid,
            spikingjelly_synops=int((events * every).sum()) if binary else 0,
            spikingjelly_macs=0 if binary else executions * self.dense.padded,
        )
        if edge.kind == "analog" or self.scale is None:  # images, currents, constants
            return found
        whole = (values * self.scale).round()
        if (whole - values * self.scale).abs().max() > 1e-6:
            raise errors.VerificationError(
                f"{self.node.name}: pooled spikes are no multiples of 1/{self.scale}"
            )
        sizes = whole.abs().to(torch.int64).flatten(1).sum(0)  # signed values subtract
        sops = Fraction(int((sizes * live).sum()), self.scale)
        return found if head else replace(found, upr_sops=sops)

    def _arriving(self, module: GraphModule, signal: Signal) -> Tensor:
        """(n, *shape): the input of a projection, or what the readout's head weighs: of each sample
        the sum over time, its last step, or each step.
        """
        exact, name = Signal(signal.tensor.double(), signal.static), self.node.inputs[0]
        if self.delayed:
            return fan_out.step_before(exact.tensor).flatten(0, 1)
        values = module.evaluate({self.source: exact}, [name])[name].tensor
        if self.node is self.graph.readout:
            values = values.sum((3, 4)) if values.dim() == 5 else values
            weighings = reduction.weighings(self.graph.readout.weighing, len(values))
            return torch.cat([values[at].sum(0) for at in weighings])
        return values if signal.static else values.flatten(0, 1)


def _rules(model: Model) -> dict[str, _Rule]:
    graph = model.graph
    folded = deploy.lower(model).synapses
    dense = dense_ops(graph)
    rules = {}
    backs = {back.name for back in graph.feedbacks.values()}
    for node in (*graph.projections, *graph.feedbacks.values(), graph.readout):
        if not node.weighs and node.name not in backs:
            continue
        maps = _maps(model, node, folded[node.name])
        source, between = linear_operators.walk_back(graph, node.name)
        parts = [inner.denominator(graph.shapes[inner.inputs[0]]) for inner in between]
        whole = [part for part in parts if part is not None]
        scale = math.prod(whole) if len(whole) == len(parts) else None
        plain = not any(inner.rescales for inner in between)
        given = graph, node, source, scale, plain, dense[node.name], *maps
        rules[node.name] = _Rule(*given, delayed=node.name in backs)
    return rules


def _maps(
    model: Model, node: ir.Node, synapses: fold_batch_norm.DeployedWeights
) -> tuple[Array, Array, Array]:
    if node is model.graph.readout:
        columns: Array = (synapses.weight != 0).sum(axis=0, dtype=np.int64)
        return np.full_like(columns, len(synapses.weight)), columns, columns
    operator: Any = linear_operators.base_operator(node, model.graph, synapses)
    ones = replace(operator, weight=np.ones_like(operator.weight))
    live = fan_out.live_targets(model.graph, model.neuron_masks, node.name)
    return fan_out.fanout(ones), fan_out.fanout(operator), fan_out.fanout(operator, live)
