"""Connectivity during a search, and the penalty's weight lambda, by which it ends at a wanted one.

A lambda that suits one data set and one length of training says nothing for another. Here the hard
masks' connectivity follows a falling curve that reaches the target before the masks have set. From
then on, an epoch that ends far off is corrected by one common shift of all thresholds, and so is
the last one if it is more than 10 % off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.analysis.connectivity import Connectivity, dense_synapses, measure_connectivity
from soul_deploy.base import Array
from soul_deploy.base.errors import TargetError, UsageError, require
from soul_deploy.ir import Node, Projection, SpikingGraph
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.masks import Masks, SoftMask
from soul_deploy.training.state import Tree, number_of


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
        if graph.readout.linear or not voters.fires:
            return None
        weights = self._effective(graph.projection(voters.inputs[0]))
        kept = (weights.reshape(graph.readout.classes, -1) != 0).any(axis=1)
        return None if kept.all() else int(kept.argmin())

    def _weight(self, node: Projection) -> Tensor:
        weight = self.module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def _effective(self, node: Projection) -> Array:
        kept = self._weight(node) != 0
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
            before = shares.get(_source(graph, node))
            counts = kept.sum(1) if before is None else kept @ _fitting(before, kept.shape[1])
            behind = next((n for n in graph.consumers[node.name] if graph[n].fires), "")
            after = self._neuron_share(behind, counts, soft)
            live += positions * float((counts * after).sum())
            dense += positions * self._weight(node).numel()
            shares[behind] = after * (counts > 0)
        return live / dense

    def _kept_by_channel(self, node: Projection, soft: bool) -> Tensor:
        """How many weights are kept between each output and input channel: (out, in)."""
        mask = self.masks.weights.get(node.name)
        kept = torch.ones_like(self._weight(node)) if mask is None else _multiplier(mask, soft)
        if kept.dim() > 2:
            return kept.flatten(2).sum(2)
        shape = self.module.graph.shapes.get(_source(self.module.graph, node), ())
        channels = shape[0] if shape and kept.shape[1] % shape[0] == 0 else kept.shape[1]
        return kept.reshape(len(kept), channels, -1).sum(2)

    def _neuron_share(self, name: str, like: Tensor, soft: bool) -> Tensor:
        mask = self.masks.neurons.get(name)
        if mask is None:
            return torch.ones_like(like)
        share = _multiplier(mask, soft)
        return _fitting(share.flatten(1).mean(1) if share.dim() > 1 else share, len(like))


def _multiplier(mask: SoftMask, soft: bool) -> Tensor:
    return mask() if soft else mask.keep().to(mask.alpha.dtype)


def _fitting(share: Tensor, channels: int) -> Tensor:
    """The share of each channel; the mean where groups or generated channels differ in number."""
    return share if len(share) == channels else share.mean().expand(channels)


def _source(graph: SpikingGraph, node: Node) -> str:
    before = graph[node.inputs[0]]
    while not before.fires and before.inputs:
        before = graph[before.inputs[0]]
    return before.name


BAND = 0.1
"""How far from the target the network may end, relative to it."""
FAR = 0.5
"""How far off an epoch may end, relative to the target, before the last."""
SETTLED = 0.6
"""The share of the search after which the curve is at the target."""
UPDATES = 100
"""How often lambda is set during a search, whatever its length."""
GAIN, DAMPING, RISE, FALL = 0.3, 4.0, 0.3, 1.0
BALANCE = 0.02
LOWEST, HIGHEST = 0.01 * BALANCE, 3.0
"""Bounds of lambda, as shares of the one whose pull equals the task's."""
BISECTIONS = 30


def check_target(target: float | None) -> None:
    """Raise UsageError unless 0 < target < 1."""
    if target is not None and not 0 < target < 1:
        raise UsageError(
            f"target_connectivity {target:g} must be above 0 and below 1 (0.05 leaves 5 % of the "
            "synapses)"
        )


def within_band(share: float, target: float) -> bool:
    """Whether a connectivity is within 10 % of the target."""
    return abs(share - target) <= BAND * target


class LambdaControl:
    """A damped proportional controller of log lambda.

    The wanted connectivity falls exponentially from the first one measured. Pruned entries hardly
    come back once their masks have closed, so lambda starts low and is mostly raised. It stays
    within bounds that are known from the first batch (`balance`: where its pull equals the task's):
    above them all masks close at the same pace, useful or not; below, it has no effect.
    """

    def __init__(self, target: float, start: float, balance: float) -> None:
        self.target = target
        self._value = start
        self._lowest, self._highest = min(start, LOWEST * balance), max(start, HIGHEST * balance)
        self._first: float | None = None
        self._last = 0.0

    def state(self) -> Tree:
        """Its value, bounds and memory."""
        names = ("value", "lowest", "highest", "first", "last")
        return {name: getattr(self, f"_{name}") for name in names}

    @staticmethod
    def restored(target: float, tree: Tree) -> "LambdaControl":
        """The controller whose `state` was `tree`. Raises FileFormatError if it is none."""
        control = LambdaControl(target, number_of(tree, "value"), 0.0)
        control._lowest, control._highest = number_of(tree, "lowest"), number_of(tree, "highest")
        control._first = first = None if tree.get("first") is None else number_of(tree, "first")
        control._last = number_of(tree, "last")
        bounded = 0 <= control._lowest <= control._value <= control._highest
        require(
            bounded and (first is None or 0 <= first <= 1),
            f"lambda {control._value:g}, from {control._lowest:g} to {control._highest:g}, first "
            f"connectivity {first}: no state of the controller",
        )
        return control

    def wanted(self, progress: float) -> float:
        """The connectivity aimed at after a share of the search (0 to 1)."""
        part = min(1.0, progress / SETTLED)
        first = max(self.target, self._first or self.target)
        return float(self.target**part * first ** (1 - part))

    def update(self, progress: float, share: float) -> float:
        """Set lambda from the measured connectivity; returns it."""
        if self._first is None:
            self._first = share
        error = math.log(max(share, 1e-9) / self.wanted(progress))
        change = GAIN * error + DAMPING * (error - self._last)
        self._last = error
        self._value *= math.exp(min(RISE, max(-FALL, change)))
        self._value = min(self._highest, max(self._lowest, self._value))
        return self._value


def balanced_lambda(task: Tensor, masks: Masks) -> float:
    """The lambda whose penalty pulls at the average mask as hard as the task's loss.

    task: the loss of a batch, its graph still there; of several processes, each gives the loss of
    its part times its weight.
    """
    parameters = masks.parameters()
    found = torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True)
    pulls = [pull for pull in found if pull is not None]
    distributed.current().add_up(pulls)
    pushes = torch.autograd.grad(masks.penalty(), parameters)
    pull, push = (sum(float(g.abs().sum()) for g in found) for found in (pulls, pushes))
    if pull == 0 or push == 0:
        return 1e-11 / BALANCE
    return pull / push


@dataclass(frozen=True)
class Adjustment:
    """A correction: this was added to every alpha, from one connectivity to another."""

    offset: float
    before: float
    after: float


def adjust(masks: Masks, target: float, exact: Callable[[], Connectivity]) -> Adjustment | None:
    """Shift all alphas by one number until the hard masks are within 10 % of the target.

    None if they are already. Raises TargetError, alphas unchanged, if no shift does it (then
    many alphas are equal).
    """
    before = exact().share
    if within_band(before, target):
        return None
    start = {id(mask): mask.alpha.detach().clone() for mask in masks}

    def set_offset(offset: float) -> float:
        with torch.no_grad():
            for mask in masks:
                mask.alpha.copy_(start[id(mask)] + offset)
        return exact().share

    low = -max(float(mask.alpha.detach().max()) for mask in masks)
    high = -min(float(mask.alpha.detach().min()) for mask in masks) + 1e-6
    aim = target * (1 - BAND / 2 if before < target else 1 + BAND / 2)
    found: list[tuple[float, float]] = []
    nearest = before
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        share = set_offset(middle)
        nearest = min(nearest, share, key=lambda value: abs(value - target))
        if within_band(share, target):
            found.append((abs(middle), middle))
        low, high = (low, middle) if share > aim else (middle, high)
    if found:
        _, offset = min(found)
        return Adjustment(offset, before, set_offset(offset))
    set_offset(0.0)
    raise TargetError(
        f"the search ended at connectivity {before:.4g}, and no common threshold of the masks "
        f"brings it within 10 % of {target:g} (the nearest gave {nearest:.4g}); search longer, "
        "with a higher prune_lr, or with a nonzero standard deviation in mask_init_factor"
    )
