"""What a search adds to the task's loss: a penalty on every kept weight and neuron.

Its coefficients are constants, computed once from shapes: SynOps per time step at unit firing rate
(Shi et al., published code, models/submodules/sparse.py and penalty_term.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from soul_deploy import ir
from soul_deploy.analysis.connectivity import dense_synapses
from soul_deploy.base import dispatch

CoefficientRule = Literal["authors", "exact", "params"]
RULES: tuple[CoefficientRule, ...] = get_args(CoefficientRule)


@dataclass(frozen=True)
class Coefficients:
    """e_w per projection (each of its weights) and e_n per population (each of its neurons)."""

    weights: Mapping[str, float]
    neurons: Mapping[str, float]


def coefficients(graph: ir.SpikingGraph, rule: CoefficientRule) -> Coefficients:
    """e_w and e_n of every projection and population.

    authors  e_w = H_in·W_in / stride², 1 for a linear layer or a convolution that covers its
             whole input; e_n = Σ over the consumers of C_out·k_h·k_w / stride² (borders and
             pooling in between ignored)
    exact    e_w = output positions; e_n = Σ over the consumers of their dense synapses, over the
             number of neurons
    params   e_w = 1; e_n = Σ over the consumers of their weights, over the number of neurons
    """
    projections, populations, shapes = graph.projections, graph.populations, graph.shapes
    readers = {node.name: _consumers(graph, node.name) for node in populations}
    if rule == "authors":
        weights = {node.name: _authors_weight(graph, node) for node in projections}
        fanouts = {name: float(sum(map(_authors_fanout, users))) for name, users in readers.items()}
        return Coefficients(weights, fanouts)
    if rule == "params":
        positions = {node.name: 1.0 for node in projections}
        synapses = {node.name: prod(node.weight_shape) for node in projections}
    else:
        positions = {node.name: float(prod(shapes[node.name][1:])) for node in projections}
        synapses = dense_synapses(graph)
    sums = {name: sum(synapses[user.name] for user in users) for name, users in readers.items()}
    return Coefficients(positions, {name: sums[name] / prod(shapes[name]) for name in sums})


@dispatch.operation_table(ir.Projection)
def positions_to_one(node: ir.Node) -> int:
    """Input positions to one output position: the product of the strides."""
    raise ir.no_entry(node, "the penalty's coefficient")


positions_to_one.on(ir.Convolution)(lambda node: prod(node.stride))
positions_to_one.on(ir.Linear)(lambda node: 1)


def _authors_weight(graph: ir.SpikingGraph, node: ir.Projection) -> float:
    if prod(graph.shapes[node.name][1:]) == 1:
        return 1.0
    return prod(graph.shapes[node.inputs[0]][1:]) / positions_to_one(node)


def _authors_fanout(node: ir.Projection) -> float:
    return node.out_channels * prod(node.weight_shape[2:]) / positions_to_one(node)


def _consumers(graph: ir.SpikingGraph, name: str) -> list[ir.Projection]:
    """Projections that read a population, each once, through pooling, flattening and merges.

    A residual stream hands every member's spikes to all that read it further on.
    """
    found: list[ir.Projection] = []
    pending, seen = list(graph.consumers[name]), set[str]()
    while pending:
        node = graph[pending.pop()]
        if node.name not in seen and node.projects:
            found.append(graph.projection(node.name))
        elif node.name not in seen and not node.fires:
            pending.extend(graph.consumers[node.name])
        seen.add(node.name)
    return found
