"""Connectivity of a network while its masks are searched for: exact, or quickly estimated."""

from math import prod

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.connectivity import Connectivity, dense_synapses, measure_connectivity
from soul_deploy.ir import Node, Population, Projection, SpikingGraph
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.masks import Masks, SoftMask


class ConnectivityMeter:
    """Connectivity of a module under its hard masks: exact, or quickly estimated."""

    def __init__(self, module: GraphModule, masks: Masks) -> None:
        self.module, self.masks = module, masks
        self.dense = dense_synapses(module.graph)
        self.correction = 1.0

    def exact(self) -> Connectivity:
        """Exact integers; also calibrates the estimate."""
        found = measure_connectivity(
            self.module.graph,
            {node.name: self._effective(node) for node in self.module.graph.projections},
            {name: mask.keep().cpu().numpy() for name, mask in self.masks.neurons.items()},
            self.dense,
        )
        rough = self._rough(soft=False)
        if rough > 0 and found.live > 0:
            self.correction = found.share / rough
        return found

    def estimate(self) -> float:
        """The share under the soft masks, by channels; it approaches the hard masks' share.

        Borders and overlapping masks as at the last exact count.
        """
        return self._rough(soft=True) * self.correction

    def empty_class(self) -> int | None:
        """The first class none of whose voting neurons has a kept weight, if any."""
        graph = self.module.graph
        voters = graph[graph.readout.inputs[0]]
        if graph.readout.linear or not isinstance(voters, Population):
            return None
        projection = graph[voters.inputs[0]]
        assert isinstance(projection, Projection)
        kept = self._effective(projection).reshape(graph.readout.classes, -1).any(axis=1)
        return None if kept.all() else int(kept.argmin())

    def _effective(self, node: Projection) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        weight = self.module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor)
        kept = weight.detach() != 0
        if node.name in self.masks.weights:
            kept = kept & self.masks.weights[node.name].keep()
        return kept.cpu().numpy().astype(np.float32)

    @torch.no_grad()
    def _rough(self, *, soft: bool) -> float:
        graph = self.module.graph
        shares: dict[str, Tensor] = {}
        live = dense = 0.0
        for node in graph.projections:
            positions = prod(graph.shapes[node.name][1:])
            kept = self._kept_by_channel(node, soft)
            source = _source(graph, node)
            before = shares.get(source)
            counts = kept.sum(1) if before is None else kept @ _fitting(before, kept.shape[1])
            behind = _behind(graph, node)
            after = self._neuron_share(behind, counts, soft)
            live += positions * float((counts * after).sum())
            dense += positions * prod(self._shape(node))
            shares[behind] = after * (counts > 0)
        return live / dense

    def _shape(self, node: Projection) -> tuple[int, ...]:
        weight = self.module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor)
        return tuple(weight.shape)

    def _kept_by_channel(self, node: Projection, soft: bool) -> Tensor:
        """How many weights are kept between each output and input channel: (out, in)."""
        weight = self.module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor)
        mask = self.masks.weights.get(node.name)
        kept = torch.ones_like(weight) if mask is None else _multiplier(mask, soft)
        if kept.dim() > 2:
            return kept.flatten(2).sum(2)
        shape = self.module.graph.shapes.get(_source(self.module.graph, node), ())
        channels = shape[0] if shape and kept.shape[1] % shape[0] == 0 else kept.shape[1]
        return kept.reshape(len(kept), channels, -1).sum(2)

    def _neuron_share(self, name: str, like: Tensor, soft: bool) -> Tensor:
        mask = self.masks.neurons.get(name)
        if mask is None:
            return torch.ones_like(like)
        share = (
            _multiplier(mask, soft).flatten(1).mean(1)
            if mask.alpha.dim() > 1
            else _multiplier(mask, soft)
        )
        return _fitting(share, len(like))


def _multiplier(mask: SoftMask, soft: bool) -> Tensor:
    return mask() if soft else mask.keep().to(mask.alpha.dtype)


def _fitting(share: Tensor, channels: int) -> Tensor:
    """The share of each channel; the mean where groups or generated channels differ in number."""
    return share if len(share) == channels else share.mean().expand(channels)


def _source(graph: SpikingGraph, node: Projection) -> str:
    before: Node = graph[node.inputs[0]]
    while not isinstance(before, Population) and before.inputs:
        before = graph[before.inputs[0]]
    return before.name


def _behind(graph: SpikingGraph, node: Projection) -> str:
    return next((n for n in graph.consumers[node.name] if isinstance(graph[n], Population)), "")
