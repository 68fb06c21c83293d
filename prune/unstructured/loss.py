"""What a search minimises: the task's loss, and a penalty on every kept weight and neuron.

The task's loss is MSE or cross-entropy, of the mean output or of each step's (TET: Deng et al.,
ICLR 2022; as used by Shi et al., ICLR 2024, published code, utils.py). The penalty's coefficients
are constants, computed once from shapes: SynOps per time step at unit firing rate (Shi et al.,
published code, models/submodules/sparse.py and penalty_term.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis.connectivity import dense_synapses
from soul_deploy.base import dispatch
from soul_deploy.base.errors import UsageError, require_known
from soul_deploy.nn.graph_module import GraphModule

CoefficientRule = Literal["authors", "exact", "params"]
RULES: tuple[CoefficientRule, ...] = get_args(CoefficientRule)
Criterion = Literal["mse", "ce"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


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


@dataclass(frozen=True)
class Objective:
    """criterion "mse": against one-hot targets; "ce": cross-entropy.

    tet: the mean over steps of (1 - tet_lambda) · criterion(output_t) + tet_lambda · MSE(output_t,
    tet_phi), instead of the criterion of the mean output.
    """

    criterion: Criterion = "mse"
    tet: bool = False
    tet_phi: float = 1.0
    tet_lambda: float = 0.0

    def __post_init__(self) -> None:
        require_known("criterion", self.criterion, CRITERIA)
        if not 0 <= self.tet_lambda <= 1:
            raise UsageError(f"TET_lambda {self.tet_lambda} must be from 0 to 1")

    def loss(self, module: GraphModule, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's loss, and its class scores (B, classes)."""
        if not self.tet:
            scores = module(images)
            return self.of_scores(scores, labels), scores
        steps = module.per_step(images)
        return self.of_steps(steps, labels), steps.detach().mean(0)

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The criterion of scores (B, classes) against integer labels (B,)."""
        if self.criterion == "ce":
            return F.cross_entropy(scores, labels)
        return F.mse_loss(scores, F.one_hot(labels, scores.shape[-1]).to(scores.dtype))

    def of_steps(self, steps: Tensor, labels: Tensor) -> Tensor:
        """TET's loss of per-step scores (T, B, classes)."""
        task = torch.stack([self.of_scores(scores, labels) for scores in steps]).mean()
        if self.tet_lambda == 0:
            return task
        calm = F.mse_loss(steps, torch.full_like(steps, self.tet_phi))
        return (1 - self.tet_lambda) * task + self.tet_lambda * calm
