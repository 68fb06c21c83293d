"""Connectivity: which share of the dense network's synapses is left and can carry a spike.

A synapse counts if its weight is kept, its presynaptic neuron is unmasked and reachable from the
input, and its postsynaptic neuron is unmasked (Shi et al., ICLR 2024; published code,
models/submodules/sparse.py, `connects`). Synapses, not parameters: a kernel weight counts once for
each output position it serves, padding not among them. Average pooling is composed into the next
projection, so that the count stays an integer. The readout's head is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.composing import ReadoutOperator, compose
from soul_deploy.counting import arrivals
from soul_deploy.folding import Synapses
from soul_deploy.graph import (
    Convolution,
    Input,
    Linear,
    MaxPool,
    Population,
    Projection,
    SpikingGraph,
)
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.tables import text_table


@dataclass(frozen=True)
class LayerConnectivity:
    """Synapses of one projection: what is left, and what a dense one has."""

    projection: str
    live: int
    dense: int


@dataclass(frozen=True)
class Connectivity:
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
        return self.live / self.dense

    def table(self) -> str:
        """A row per projection and the total, as text."""
        rows: list[list[object]] = [
            [layer.projection, layer.live, layer.dense, f"{100 * layer.live / layer.dense:.2f} %"]
            for layer in self.layers
        ]
        rows.append(["total", self.live, self.dense, f"{100 * self.share:.2f} %"])
        return text_table("Connectivity", ["layer", "synapses", "dense", "connectivity"], rows)


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
        if isinstance(node, Input):
            reachable[node.name] = torch.ones(1, *node.shape, dtype=torch.float64)
        elif isinstance(node, MaxPool):
            before = reachable[node.inputs[0]]
            reachable[node.name] = F.max_pool2d(before, node.kernel, node.stride, node.padding)
        elif isinstance(node, Projection):
            composed = compose(graph, folded, node.name)
            assert not isinstance(composed.operator, ReadoutOperator)
            fed = arrivals(composed.operator, reachable[composed.source])
            fed = fed.reshape(1, *graph.shapes[node.name])
            fed = fed * _mask_behind(graph, node, neuron_masks)
            layers.append(LayerConnectivity(node.name, int(fed.sum().item()), totals[node.name]))
            reachable[node.name] = fed
        elif isinstance(node, Population):
            reachable[node.name] = (reachable[node.inputs[0]] != 0).double()
    return Connectivity(tuple(layers))


def _mask_behind(
    graph: SpikingGraph, projection: Projection, neuron_masks: Mapping[str, Array]
) -> Tensor:
    for name in graph.consumers[projection.name]:
        if name in neuron_masks:
            keep = torch.from_numpy(neuron_masks[name].astype(np.float64))
            return keep.reshape(1, *graph.shapes[projection.name])
    return torch.ones(1, *graph.shapes[projection.name], dtype=torch.float64)


def dense_synapses(graph: SpikingGraph) -> dict[str, int]:
    """Synapses of every projection with all weights kept, border-valid."""
    ones = {
        node.name: Synapses(np.ones(weight_shape(node), np.float32), None)
        for node in graph.projections
    }
    totals = {}
    for node in graph.projections:
        composed = compose(graph, ones, node.name)
        assert not isinstance(composed.operator, ReadoutOperator)
        everywhere = torch.ones(1, *composed.operator.in_shape, dtype=torch.float64)
        totals[node.name] = int(arrivals(composed.operator, everywhere).sum().item())
    return totals


def weight_shape(node: Projection) -> tuple[int, ...]:
    """The shape of a projection's weight tensor."""
    if isinstance(node, Convolution):
        return (node.channels, node.in_channels // node.groups, *node.kernel)
    assert isinstance(node, Linear), node
    return (node.features, node.in_features)
