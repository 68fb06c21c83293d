"""Connectivity of a network under its masks: exact integers, or an estimate for each step."""

from math import prod

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.connectivity import (
    Connectivity,
    dense_synapses,
    measure_connectivity,
    weighed_names,
)
from soul_deploy.base import Array
from soul_deploy.ir import Node, Projection, SpikingGraph
from soul_deploy.lowering.fold_batch_norm import by_channel
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.masks import Masks, SoftMask


class ConnectivityMeter:
    """Connectivity of a module under its hard masks: exact, or quickly estimated."""

    def __init__(self, module: GraphModule, masks: Masks) -> None:
        self.module, self.masks = module, masks
        self.dense = dense_synapses(module.graph)

    def exact(self) -> Connectivity:
        """Exact integers."""
        return measure_connectivity(
            self.module.graph,
            {name: self._effective(name) for name in weighed_names(self.module.graph)},
            {name: mask.keep().cpu().numpy() for name, mask in self.masks.neurons.items()},
            self.dense,
        )

    def empty_class(self) -> int | None:
        """The first class none of whose voting neurons has a kept weight, if any."""
        graph = self.module.graph
        voters = graph[graph.readout.inputs[0]]
        if graph.readout.linear or not voters.fires:
            return None
        weights = self._effective(graph.masked_projection(voters.name))
        kept = (weights.reshape(graph.readout.classes, -1) != 0).any(axis=1)
        return None if kept.all() else int(kept.argmin())

    def _weight(self, node: Projection) -> Tensor:
        weight = self.module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def _effective(self, name: str) -> Array:
        node = self.module.graph[name]
        if not isinstance(node, Projection):  # a feedback of each neuron to itself
            return np.ones(by_channel(self.module.graph.shapes[name]), np.float32)
        kept = self._weight(node) != 0
        if name in self.masks.weights:
            kept = kept & self.masks.weights[name].keep()
        return kept.cpu().numpy().astype(np.float32)

    @torch.no_grad()
    def estimate(self) -> float:
        """The share by channels, without borders: kept weights between neurons that are kept.

        A synapse counts though the input reaches it no more.
        """
        graph = self.module.graph
        shares: dict[str, Tensor] = {}
        live = dense = 0.0
        for node in graph.projections:
            positions = prod(graph.shapes[node.name][1:])
            kept = self._kept_by_channel(node)
            before = shares.get(_source(graph, node))
            counts = kept.sum(1) if before is None else kept @ _fitting(before, kept.shape[1])
            behind = next(iter(graph.charged_by(node.name)), "")
            shares[behind] = self._neuron_share(behind, counts)
            live += positions * float((counts * shares[behind]).sum())
            dense += positions * self._weight(node).numel()
        return live / dense

    def _kept_by_channel(self, node: Projection) -> Tensor:
        """How many weights are kept between each output and input channel: (out, in)."""
        weight, mask = self._weight(node), self.masks.weights.get(node.name)
        kept = (weight != 0).to(weight.dtype)
        kept = kept if mask is None else kept * _hard(mask)
        if kept.dim() > 2:
            return kept.flatten(2).sum(2)
        shape = self.module.graph.shapes.get(_source(self.module.graph, node), ())
        channels = shape[0] if shape and kept.shape[1] % shape[0] == 0 else kept.shape[1]
        return kept.reshape(len(kept), channels, -1).sum(2)

    def _neuron_share(self, name: str, like: Tensor) -> Tensor:
        mask = self.masks.neurons.get(name)
        if mask is None:
            return torch.ones_like(like)
        share = _hard(mask)
        return _fitting(share.flatten(1).mean(1) if share.dim() > 1 else share, len(like))


def _hard(mask: SoftMask) -> Tensor:
    return mask.keep().to(mask.alpha.dtype)


def _fitting(share: Tensor, channels: int) -> Tensor:
    """The share of each channel; the mean where groups or generated channels differ in number."""
    return share if len(share) == channels else share.mean().expand(channels)


def _source(graph: SpikingGraph, node: Node) -> str:
    before = graph[node.inputs[0]]
    while not before.fires and before.inputs:
        before = graph[before.inputs[0]]
    return before.name
