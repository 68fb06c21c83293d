"""The removal plan: which channels can go without changing any output, and why.

A channel goes by one of three rules, applied to a fixpoint, forwards for constants and backwards
for liveness, since each removal can make others possible:

masked   its current is masked to 0, and a neuron without current stays silent
silent   nothing live feeds it: its current is a constant (what batch norm makes of 0), and the
         neuron, run on that constant, does not spike
unread   every synapse that leaves it is 0

Nothing here changes a network; `soul_deploy.prune.remove` applies a plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from soul_deploy.graph import (
    Convolution,
    Input,
    Linear,
    Node,
    Population,
    Projection,
    Readout,
    SpikingGraph,
)
from soul_deploy.modelfile import Model, Validity
from soul_deploy.module import GraphModule, Signal
from soul_deploy.neurons import SpikingNeuron
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import RemovalError
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.tables import text_table

Rule = Literal["masked", "silent", "unread"]
FOREVER = 4096  # steps within which a membrane that will never fire comes to rest


@dataclass(frozen=True)
class LayerRemoval:
    """What goes from one population: channel -> rule; `tied` says why a layer stays whole."""

    population: str
    projection: str
    channels: int
    removed: Mapping[int, Rule]
    tied: str | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the channels that stay, ascending."""
        return tuple(c for c in range(self.channels) if c not in self.removed)


@dataclass(frozen=True)
class RemovalPlan:
    """One entry per population fed by a projection, and what the removal is valid for."""

    layers: tuple[LayerRemoval, ...]
    validity: Validity

    def kept(self, population: str) -> tuple[int, ...] | None:
        """Channels of `population` that stay; None for a population that the plan leaves alone."""
        for layer in self.layers:
            if layer.population == population:
                return layer.kept
        return None

    def table(self) -> str:
        """The plan as text, a row per layer."""
        rows: list[list[object]] = []
        for layer in self.layers:
            by_rule = [
                sum(rule == kind for rule in layer.removed.values())
                for kind in ("masked", "silent", "unread")
            ]
            kept = len(layer.kept)
            rows.append([layer.population, layer.channels, kept, *by_rule, layer.tied or ""])
        totals = [sum(int(str(row[i])) for row in rows) for i in range(1, 6)]
        rows.append(["total", *totals, ""])
        columns = ["layer", "channels", "kept", "masked", "silent", "unread", "what"]
        text = text_table("Removal plan", columns, rows)
        if self.validity.time_steps is not None:
            text += (
                f"\nValid for T = {self.validity.time_steps} with state reset before each sample: "
                "some channels would fire later."
            )
        return text


def plan_removal(model: Model) -> RemovalPlan:
    """Decide what can be removed from a masked or zeroed network.

    Raises RemovalError if a layer would lose its last channel: the network's output would then
    not depend on its input.
    """
    return _Planner(model).plan()


class _Planner:
    """The fixpoint; `live` shrinks until nothing more can go."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.graph
        self.module = model.module()
        self.tied = {node.name: tied_reason(self.graph, node) for node in _planned(self.graph)}
        self.live: dict[str, Array] = {
            node.name: np.ones(self.graph.shapes[node.name][0], bool)
            for node in self.graph.populations
        }
        self.rules: dict[str, dict[int, Rule]] = {name: {} for name in self.tied}
        self.needs_time_steps = False

    def plan(self) -> RemovalPlan:
        while self._pass():
            pass
        layers = tuple(
            LayerRemoval(
                name,
                self.graph[name].inputs[0],
                len(self.live[name]),
                dict(sorted(self.rules[name].items())),
                reason,
            )
            for name, reason in self.tied.items()
        )
        steps = self.graph.time_steps if self.needs_time_steps else None
        return RemovalPlan(layers, Validity(steps, self.needs_time_steps))

    def _pass(self) -> bool:
        """One sweep forwards and one backwards; whether anything changed."""
        changed = False
        free = [name for name, reason in self.tied.items() if reason is None]
        for name in free:
            changed |= self._remove(name, self._silent(name))
        for name in reversed(free):
            unread: dict[int, Rule] = {int(c): "unread" for c in np.flatnonzero(~self._read(name))}
            changed |= self._remove(name, unread)
        return changed

    def _remove(self, name: str, found: Mapping[int, Rule]) -> bool:
        new = {c: rule for c, rule in found.items() if self.live[name][c]}
        if new and len(new) == int(self.live[name].sum()):
            raise RemovalError(
                f"{name}: all of its remaining channels could go ({_listed(new)}); the output "
                "would not depend on the input. Prune less, or keep at least one channel"
            )
        self.rules[name] |= new
        self.live[name][list(new)] = False
        return bool(new)

    def _silent(self, name: str) -> dict[int, Rule]:
        """Channels that receive a constant current and do not spike on it."""
        projection = self.graph[self.graph[name].inputs[0]]
        assert isinstance(projection, Projection)
        weight = self.model.state[f"{projection.name}.weight"]
        inputs = self._live_inputs(projection)
        fed: Array = np.asarray(_columns_used(weight, len(inputs))[:, inputs].any(axis=1))
        every: Array = np.ones(projection.out_channels, bool)
        keep: Array = self.model.channel_masks.get(name, every)
        constant = self.live[name] & ~(fed & keep)
        if not constant.any():
            return {}
        fires, for_this_time_only = self._run_on_constant(name, projection)
        found: dict[int, Rule] = {}
        for c in np.flatnonzero(constant & ~fires):
            found[int(c)] = "silent" if keep[c] else "masked"
            self.needs_time_steps |= bool(for_this_time_only[c])
        return found

    def _live_inputs(self, projection: Projection) -> Array:
        """Which input channels of a projection are live."""
        source = source_population(self.graph, projection)
        if source is None:
            shape = self.graph.shapes[projection.inputs[0]]
            return np.ones(shape[0], bool)
        return self.live[source]

    def _run_on_constant(self, name: str, projection: Projection) -> tuple[Array, Array]:
        """Run every channel's own batch norm and neuron on no input.

        Returns (fires within T, silent for T steps but not proven silent for ever), both (C,).
        """
        current = constant_current(self.module, projection)
        neuron = self.module.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        return _run(neuron.equation(), current.numpy(), self.graph.time_steps)

    def _read(self, name: str) -> Array:
        """Which channels have a nonzero synapse to something live."""
        live: Array = self.live[name]
        read: Array = np.zeros(len(live), bool)
        for consumer in weighted_consumers(self.graph, name) or ():
            weight = self.model.state[f"{consumer.name}.weight"]
            used = _columns_used(weight, len(read))
            rows: Array = np.ones(len(weight), bool)
            for behind in self.graph.consumers[consumer.name]:
                if behind in self.tied:
                    rows = self.live[behind]
            read |= used[rows].any(axis=0)
        return read


def _planned(graph: SpikingGraph) -> list[Population]:
    return [n for n in graph.populations if isinstance(graph[n.inputs[0]], Projection)]


def tied_reason(graph: SpikingGraph, population: Population) -> str | None:
    """Why channels of this population cannot be removed one by one; None if they can."""
    projection = graph[population.inputs[0]]
    if len(graph.consumers[projection.name]) != 1:
        return "its current is read elsewhere too"
    if isinstance(projection, Convolution) and projection.groups != 1:
        return "fed by a grouped convolution"
    consumers = weighted_consumers(graph, population.name)
    if consumers is None:
        return "read without weights"
    if any(isinstance(node, Convolution) and node.groups != 1 for node in consumers):
        return "read by a grouped convolution"
    return None


def weighted_consumers(graph: SpikingGraph, name: str) -> list[Projection | Readout] | None:
    """The projections and linear readouts that read a node, through pooling and flattening.

    None if something without weights reads it (a vote, another population).
    """
    found: list[Projection | Readout] = []
    pending = list(graph.consumers[name])
    while pending:
        node = graph[pending.pop()]
        if isinstance(node, Projection) or (isinstance(node, Readout) and node.linear):
            found.append(node)
        elif node.op in ("max_pool", "avg_pool", "adaptive_avg_pool", "flatten"):
            pending.extend(graph.consumers[node.name])
        else:
            return None
    return found


def source_population(graph: SpikingGraph, node: Node) -> str | None:
    """The population whose channels a projection or readout reads; None for the input."""
    current = graph[node.inputs[0]]
    while not isinstance(current, Population | Input):
        current = graph[current.inputs[0]]
    return current.name if isinstance(current, Population) else None


def _columns_used(weight: Array, channels: int) -> Array:
    """(out, channels) bool: whether any weight from an input channel is not 0."""
    used: Array = (weight != 0).reshape(len(weight), channels, -1).any(axis=2)
    return used


@torch.no_grad()
def constant_current(module: GraphModule, projection: Projection) -> torch.Tensor:
    """The current (C,) of a projection whose inputs are all 0: bias, batch norm and mask only.

    The module's own operations run on it, so the result is the same to the last bit.
    """
    layer = module.get_submodule(projection.name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if isinstance(projection, Linear):
        silence = torch.zeros(1, projection.in_features)
    else:
        assert isinstance(projection, Convolution)
        sides = [
            1 + d * (k - 1) for d, k in zip(projection.dilation, projection.kernel, strict=True)
        ]
        silence = torch.zeros(1, projection.in_channels, *sides)
    source = Signal(silence.to(layer.weight.dtype), True)
    current = module.evaluate({projection.inputs[0]: source}, [projection.name])
    everywhere = current[projection.name].tensor.reshape(1, projection.out_channels, -1)
    return everywhere[0, :, 0]


def _run(equation: NeuronEquation, current: Array, steps: int) -> tuple[Array, Array]:
    """Neurons on a constant current (C,): (fires within `steps`, may fire later), both (C,).

    A membrane that stands still from one step to the next will never move again; one that still
    moves after FOREVER steps counts as one that may fire.
    """
    v = np.full_like(current, equation.rest)
    fired, within = np.zeros(len(current), bool), np.zeros(len(current), bool)
    for t in range(max(steps, FOREVER)):
        before = v
        spike, v = equation.step(v, current)
        fired |= spike
        if t < steps:
            within |= spike
        still_open = ~fired & (v != before)
        if t + 1 >= steps and not still_open.any():
            break
    return within, ~within & (fired | still_open)


def _listed(rules: Mapping[int, Rule]) -> str:
    return ", ".join(sorted(set(rules.values())))
