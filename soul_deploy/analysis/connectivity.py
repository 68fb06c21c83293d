"""Connectivity: which share of the dense network's synapses is left and can carry a spike.

A synapse counts if its weight is kept, its presynaptic neuron is unmasked and reachable from the
input, and its postsynaptic neuron is unmasked (Shi et al., ICLR 2024; published code,
models/submodules/sparse.py, `connects`). Synapses, not parameters: a kernel weight counts once for
each output position it serves, padding not among them. Average pooling is composed into the next
projection, so that the count stays an integer. The readout's head is not counted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, tables
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm
from soul_deploy.model.model import Model
from soul_deploy.nn.operations import unweighed


@dataclass(frozen=True)
class LayerConnectivity:
    """Synapses of one projection: what is left, and what a dense one has."""

    projection: str
    live: int
    dense: int


@brief
@dataclass(frozen=True)
class Connectivity(tables.Shown):
    """Exact integers per projection; `share` is live over dense for the whole network."""

    layers: tuple[LayerConnectivity, ...]

    @property
    def live(self) -> int:
        return sum(layer.live for layer in self.layers)

    @property
    def dense(self) -> int:
        return sum(layer.dense for layer in self.layers)

    @property
    def share(self) -> float:
        """At most 1; 1 too where there are no synapses that could go."""
        return self.live / self.dense if self.dense else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The integers as JSON data, and the share."""
        layers = [asdict(layer) for layer in self.layers]
        return {"live": self.live, "dense": self.dense, "share": self.share, "layers": layers}

    def parts(self) -> list[tables.Table | str]:
        """A row per projection and the total."""
        found = [*self.layers, LayerConnectivity("total", self.live, self.dense)]
        rows: list[list[object]] = [
            [row.projection, row.live, row.dense, _share_text(row)] for row in found
        ]
        return [tables.Table("Connectivity", ["layer", "synapses", "dense", "connectivity"], rows)]


def _share_text(row: LayerConnectivity) -> str:
    return f"{100 * row.live / row.dense:.2f} %" if row.dense else ""


def connectivity(model: Model, original: Model | None = None) -> Connectivity:
    """Connectivity of a masked or compact `model` with its deployed weights.

    original: the unpruned network, whose synapses are the dense ones; the model's graph if None.
    Raises LimitError for a composed matrix that is too large.
    """
    synapses = deploy.lower(model).synapses
    weights = {name: synapses[name].weight for name in weighed_names(model.graph)}
    dense = None if original is None else dense_synapses(original.graph)
    return measure_connectivity(model.graph, weights, model.neuron_masks, dense)


def measure_connectivity(
    graph: ir.SpikingGraph,
    weights: Mapping[str, Array],
    neuron_masks: Mapping[str, Array],
    dense: Mapping[str, int] | None = None,
) -> Connectivity:
    """Connectivity of `graph` with the given effective weights.

    weights: projection or feedback -> (out, in, ...), 0 where pruned. neuron_masks: population ->
    bool in the population's shape. dense: synapses of each dense projection, computed here if not
    given (they are those of the unpruned network, so a compact network needs the original's).
    """
    totals = dense_synapses(graph) if dense is None else dense
    folded = {
        name: fold_batch_norm.DeployedWeights(weight, None) for name, weight in weights.items()
    }
    walk = _Forwards(deploy.lower_synapses(graph, folded, neuron_masks).composed)
    for node in walk.lowered.graph.nodes:
        walk.reachable[node.name] = reach(node, walk)
    layers = (LayerConnectivity(name, walk.live[name], totals[name]) for name in weights)
    return Connectivity(tuple(layers))


def weighed_names(graph: ir.SpikingGraph) -> tuple[str, ...]:
    """Projections, and behind them the feedbacks of populations."""
    backs = (back.name for back in graph.feedbacks.values())
    return (*(node.name for node in graph.projections), *backs)


@dataclass(frozen=True)
class _Forwards:
    """The pass from the input on.

    reachable: 0/1 float64 (1, *shape), where a node can hold another value than 0 because of the
    input. live: synapses by projection.
    """

    lowered: deploy.Deployed
    reachable: dict[str, Tensor] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)

    def before(self, node: ir.Node) -> Tensor:
        """What is reachable of a node's only, or first, input."""
        return self.reachable[node.inputs[0]]


@dispatch.operation_table(ir.Node)
def reach(node: ir.Node, walk: _Forwards) -> Tensor:
    """Which of a node's values the input reaches: 0/1 (1, *shape)."""
    raise ir.no_entry(node, "connectivity")


reach.on(ir.Input)(lambda node, walk: torch.ones(1, *node.shape, dtype=torch.float64))
reach.on(ir.Scale, ir.ChannelNorm)(lambda node, walk: walk.before(node))
reach.on(ir.Flatten, ir.Scatter)(lambda node, walk: unweighed(node, walk.before(node)))
reach.on(ir.AdaptiveAvgPool)(lambda node, walk: F.adaptive_max_pool2d(walk.before(node), node.size))
reach.on(ir.Readout)(lambda node, walk: walk.before(node).new_zeros(1, node.classes))


@reach.on(ir.Pool)
def _pool(node: ir.Pool, walk: _Forwards) -> Tensor:
    return F.max_pool2d(walk.before(node), node.kernel, node.stride, node.padding)


@reach.on(ir.Projection)
def _projection(node: ir.Projection, walk: _Forwards) -> Tensor:
    graph, linear = walk.lowered.graph, walk.lowered.operator(node.name)
    fed = fan_out.arrivals(linear.operator, walk.reachable[linear.source])
    fed = fed.reshape(1, *graph.shapes[node.name])
    live = fan_out.live_targets(graph, walk.lowered.model.neuron_masks, node.name)
    fed = fed if live is None else fed * torch.from_numpy(live.astype(np.float64))
    walk.live[node.name] = int(fed.sum().item())
    return (fed != 0).double()


@reach.on(ir.Population)
def _neurons(node: ir.Population, walk: _Forwards) -> Tensor:
    """No neuron stands behind a constant-pattern channel."""
    current, masks = walk.before(node), walk.lowered.model.neuron_masks
    found = torch.cat([current, current.new_zeros(1, node.generated, *current.shape[2:])], dim=1)
    if node.name in masks:
        found = found * torch.from_numpy(masks[node.name].astype(np.float64)).reshape(found.shape)
    return found if node.feedback is None else _fed_back(node, found, walk)


def _fed_back(node: ir.Population, found: Tensor, walk: _Forwards) -> Tensor:
    """What the spikes that are reached reach further, from step to step, until nothing is new."""
    assert node.feedback is not None
    name, mask = node.feedback.name, walk.lowered.model.neuron_masks.get(node.name)
    operator = walk.lowered.operator(name).operator
    live = torch.ones_like(found) if mask is None else torch.from_numpy(mask.astype(np.float64))
    while True:
        fed = fan_out.arrivals(operator, found).reshape(found.shape) * live
        more = torch.maximum(found, (fed != 0).double())
        if torch.equal(more, found):
            break
        found = more
    walk.live[name] = int(fed.sum().item())
    return found


@reach.on(ir.Merge)
def _merge(node: ir.Merge, walk: _Forwards) -> Tensor:
    """Of a sum any branch will do, an AND needs all, an IAND its identity."""
    first, *others = (walk.reachable[name] for name in node.inputs)
    for other in others if node.function != "iand" else ():
        first = torch.maximum(first, other) if node.function == "add" else first * other
    return first


def dense_synapses(graph: ir.SpikingGraph, *, head: bool = False) -> dict[str, int]:
    """Synapses of every projection and feedback with no weight 0 and no neuron masked, by name.

    head: of the readout's head too, and of poolings and constants that no projection follows, which
    are projections of their own where they run. Of the very operators whose stored synapses are
    counted, average pooling composed into them, so that stored ones are never more. Raises
    LimitError for a composed matrix that is too large.
    """
    form = deploy.with_every_synapse(graph).composed
    names = [*weighed_names(form.graph if head else graph)]
    names += [graph.readout.name] if head else []
    return {name: int(fan_out.fanout(form.operator(name).operator).sum()) for name in names}
