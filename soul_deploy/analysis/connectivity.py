"""Connectivity: which share of the dense network's synapses is left and can carry a spike.

A synapse counts if its weight is kept, its presynaptic neuron is unmasked and reachable from the
input, and its postsynaptic neuron is unmasked (Shi et al., ICLR 2024; published code,
models/submodules/sparse.py, `connects`). Synapses, not parameters: a kernel weight counts once for
each output position it serves, padding not among them. Average pooling is composed into the next
projection, so that the count stays an integer. The readout's head is not counted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.analysis.synops import arrivals, fanout, live_targets
from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.base.tables import Shown, Table
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    Convolution,
    Flatten,
    Input,
    Linear,
    Merge,
    Node,
    Pool,
    Population,
    Projection,
    Readout,
    Scatter,
    SpikingGraph,
)
from soul_deploy.lowering.fold_batch_norm import Synapses, fold
from soul_deploy.lowering.linear_operators import ReadoutOperator, compose
from soul_deploy.model.model import Model


@dataclass(frozen=True)
class LayerConnectivity:
    """Synapses of one projection: what is left, and what a dense one has."""

    projection: str
    live: int
    dense: int


@brief
@dataclass(frozen=True)
class Connectivity(Shown):
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

    def parts(self) -> list[Table | str]:
        """A row per projection and the total."""
        found = [*self.layers, LayerConnectivity("total", self.live, self.dense)]
        rows: list[list[object]] = [
            [row.projection, row.live, row.dense, _share_text(row)] for row in found
        ]
        return [Table("Connectivity", ["layer", "synapses", "dense", "connectivity"], rows)]


def _share_text(row: LayerConnectivity) -> str:
    return f"{100 * row.live / row.dense:.2f} %" if row.dense else ""


def connectivity(model: Model, original: Model | None = None) -> Connectivity:
    """Connectivity of a masked or compact `model` with its deployed weights.

    original: the unpruned network, whose synapses are the dense ones; the model's graph if None.
    Raises LimitError for a composed matrix that is too large.
    """
    folded = fold(model.graph, model.state, model.channel_masks)
    weights = {node.name: folded[node.name].weight for node in model.graph.projections}
    dense = None if original is None else dense_synapses(original.graph)
    return measure_connectivity(model.graph, weights, model.neuron_masks, dense)


def measure_connectivity(
    graph: SpikingGraph,
    weights: Mapping[str, Array],
    neuron_masks: Mapping[str, Array],
    dense: Mapping[str, int] | None = None,
) -> Connectivity:
    """Connectivity of `graph` with the given effective weights.

    weights: projection -> (out, in, ...), 0 where pruned. neuron_masks: population -> bool in the
    population's shape. dense: synapses of each dense projection, computed here if not given (they
    are those of the unpruned network, so a compact network needs the original's).
    """
    totals = dense_synapses(graph) if dense is None else dense
    folded = {name: Synapses(weight, None) for name, weight in weights.items()}
    reachable: dict[str, Tensor] = {}
    layers = []
    for node in graph.nodes:
        if isinstance(node, Projection):
            composed = compose(graph, folded, node.name)
            assert not isinstance(composed.operator, ReadoutOperator)
            fed = arrivals(composed.operator, reachable[composed.source])
            fed = fed.reshape(1, *graph.shapes[node.name])
            live = live_targets(graph, neuron_masks, node.name)
            fed = fed if live is None else fed * torch.from_numpy(live.astype(np.float64))
            layers.append(LayerConnectivity(node.name, int(fed.sum().item()), totals[node.name]))
            reachable[node.name] = (fed != 0).double()
        elif isinstance(node, Population):
            reachable[node.name] = _reachable_neurons(node, reachable, neuron_masks)
        elif not isinstance(node, Readout):
            before = [reachable[name] for name in node.inputs]
            reachable[node.name] = _reachable_values(node, before)
    return Connectivity(tuple(layers))


def _reachable_neurons(
    node: Population, reachable: Mapping[str, Tensor], neuron_masks: Mapping[str, Array]
) -> Tensor:
    """0/1 in the population's shape; no neuron stands behind a generated channel."""
    current = reachable[node.inputs[0]]
    found = torch.cat([current, current.new_zeros(1, node.generated, *current.shape[2:])], dim=1)
    if node.name in neuron_masks:
        keep = torch.from_numpy(neuron_masks[node.name].astype(np.float64))
        found = found * keep.reshape(found.shape)
    return found


def _reachable_values(node: Node, before: list[Tensor]) -> Tensor:
    """0/1: of a sum any branch will do, an AND needs all, an IAND its identity."""
    if isinstance(node, Input):
        return torch.ones(1, *node.shape, dtype=torch.float64)
    (first, *others) = before
    if isinstance(node, Merge):
        for other in others if node.function != "iand" else ():
            first = torch.maximum(first, other) if node.function == "add" else first * other
        return first
    if isinstance(node, Scatter):
        wide = first.new_zeros(1, node.channels, *first.shape[2:])
        return wide.index_copy(1, torch.tensor(node.index), first)
    if isinstance(node, Pool):
        return F.max_pool2d(first, node.kernel, node.stride, node.padding)
    if isinstance(node, AdaptiveAvgPool):
        return F.adaptive_max_pool2d(first, node.size)
    assert isinstance(node, Flatten), node
    return first.flatten(1)


def dense_synapses(graph: SpikingGraph, *, head: bool = False) -> dict[str, int]:
    """Synapses of every projection with no weight 0 and no neuron masked, by name.

    head: of the readout's head too. Of the very operators whose stored synapses are counted,
    average pooling composed into them, so that stored ones are never more. Raises LimitError for a
    composed matrix that is too large.
    """
    readout = graph.readout
    shapes = {node.name: weight_shape(node) for node in graph.projections}
    if head:
        shapes[readout.name] = (readout.classes, graph.shapes[readout.inputs[0]][0])
    ones = {name: Synapses(np.ones(shape, np.float32), None) for name, shape in shapes.items()}
    return {name: int(fanout(compose(graph, ones, name).operator).sum()) for name in ones}


def weight_shape(node: Projection) -> tuple[int, ...]:
    """The shape of a projection's weight tensor."""
    if isinstance(node, Convolution):
        return (node.channels, node.in_channels // node.groups, *node.kernel)
    assert isinstance(node, Linear), node
    return (node.features, node.in_features)
