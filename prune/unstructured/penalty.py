"""Penalty coefficients of method U: what one kept weight or one kept neuron costs.

Shi et al., ICLR 2024 (published code, models/submodules/sparse.py and penalty_term.py). They are
constants, computed once from shapes: SynOps per time step at unit firing rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from soul_deploy.analysis.connectivity import dense_synapses
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    AvgPool,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Merge,
    Projection,
    Scatter,
    SpikingGraph,
)

PASSING = (MaxPool, AvgPool, AdaptiveAvgPool, Flatten, Merge, Scatter)
CoefficientRule = Literal["authors", "exact"]


@dataclass(frozen=True)
class Coefficients:
    """e_w per projection (each of its weights) and e_n per population (each of its neurons)."""

    weights: Mapping[str, float]
    neurons: Mapping[str, float]


def coefficients(graph: SpikingGraph, rule: CoefficientRule) -> Coefficients:
    """e_w and e_n of every projection and population.

    authors  e_w = H_in·W_in / stride², 1 for a linear layer or a convolution that covers its
             whole input; e_n = Σ over the consumers of C_out·k_h·k_w / stride² (borders and
             pooling in between ignored)
    exact    e_w = output positions; e_n = Σ over the consumers of their dense synapses, over the
             number of neurons
    """
    if rule == "authors":
        return Coefficients(
            {node.name: _authors_weight(graph, node) for node in graph.projections},
            {
                node.name: float(sum(map(_authors_fanout, _consumers(graph, node.name))))
                for node in graph.populations
            },
        )
    synapses = dense_synapses(graph)
    return Coefficients(
        {node.name: float(prod(graph.shapes[node.name][1:])) for node in graph.projections},
        {
            node.name: sum(synapses[user.name] for user in _consumers(graph, node.name))
            / prod(graph.shapes[node.name])
            for node in graph.populations
        },
    )


def _authors_weight(graph: SpikingGraph, node: Projection) -> float:
    if not isinstance(node, Convolution) or prod(graph.shapes[node.name][1:]) == 1:
        return 1.0
    _, height, width = graph.shapes[node.inputs[0]]
    return height * width / prod(node.stride)


def _authors_fanout(node: Projection) -> float:
    if isinstance(node, Convolution):
        return node.channels * prod(node.kernel) / prod(node.stride)
    assert isinstance(node, Linear), node
    return float(node.features)


def _consumers(graph: SpikingGraph, name: str) -> list[Projection]:
    """Projections that read a population, each once, through pooling, flattening and merges.

    A residual stream hands every member's spikes to all that read it further on.
    """
    found: list[Projection] = []
    pending, seen = list(graph.consumers[name]), set[str]()
    while pending:
        node = graph[pending.pop()]
        if node.name in seen:
            continue
        seen.add(node.name)
        if isinstance(node, Projection):
            found.append(node)
        elif isinstance(node, PASSING):
            pending.extend(graph.consumers[node.name])
    return found
