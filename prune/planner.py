"""Making a removal plan: the fixpoint of constants (forwards) and liveness (backwards).

Each removal can make others possible: a removed column may leave a row without inputs, a removed
row may leave a producer unread. The order does not change the result.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from soul_deploy.graph import (
    AvgPool,
    Convolution,
    Input,
    Linear,
    MaxPool,
    Node,
    Population,
    Projection,
    Readout,
    SpikingGraph,
)
from soul_deploy.modelfile import Model, Validity
from soul_deploy.neurons import SpikingNeuron
from soul_deploy.prune.constants import ConstantResponse, constant_current, respond
from soul_deploy.prune.plan import LayerRemoval, RemovalPlan, Rule
from soul_deploy.runtime.errors import RemovalError, UsageError
from soul_deploy.runtime.files import Array


def plan_removal(model: Model, *, round_to: int = 1) -> RemovalPlan:
    """Decide what can be removed from a masked or zeroed network.

    round_to: channel counts stay multiples of this (dense backends are faster then); channels that
    could go stay, masked. Raises RemovalError if a layer would lose its last channel: the output
    would then not depend on the input.
    """
    if round_to < 1:
        raise UsageError(f"round_to {round_to} must be at least 1")
    return _Planner(model).plan(round_to)


class _Planner:
    """`live` shrinks until nothing more can go; `state` is a working copy with folded biases."""

    def __init__(self, model: Model) -> None:
        self.graph = model.graph
        self.model = model
        self.tied = {node.name: tied_reason(self.graph, node) for node in planned(self.graph)}
        self.free = [name for name, reason in self.tied.items() if reason is None]
        self.live: dict[str, Array] = {
            node.name: np.ones(self.graph.shapes[node.name][0], bool)
            for node in self.graph.populations
        }
        self.rules: dict[str, dict[int, Rule]] = {name: {} for name in self.tied}
        self.generated: dict[str, dict[int, tuple[bool, ...]]] = {name: {} for name in self.tied}
        self.bias: dict[str, Array] = {}
        self.needs_time_steps = False

    def plan(self, round_to: int) -> RemovalPlan:
        while self._pass():
            pass
        for name in self.free:
            self._generate(name)
        if round_to > 1:
            for name in self.free:
                self._round(name, round_to)
        needs_time_steps = self.needs_time_steps or any(self.generated.values())
        return RemovalPlan(
            tuple(self._entry(name) for name in self.tied),
            Validity(self.graph.time_steps if needs_time_steps else None, needs_time_steps),
            dict(self.bias),
        )

    def _pass(self) -> bool:
        """One sweep forwards and one backwards; whether anything changed."""
        changed = False
        for name in self.free:
            changed |= self._remove(name, self._without_input(name))
        for name in reversed(self.free):
            unread: dict[int, Rule] = {int(c): "unread" for c in np.flatnonzero(~self._read(name))}
            changed |= self._remove(name, unread)
        return changed

    def _remove(self, name: str, found: Mapping[int, Rule]) -> bool:
        new = {c: rule for c, rule in found.items() if self.live[name][c]}
        if new and len(new) == int(self.live[name].sum()):
            raise RemovalError(
                f"{name}: all of its remaining channels could go "
                f"({', '.join(sorted(set(new.values())))}); the output would not depend on the "
                "input. Prune less, or keep at least one channel"
            )
        for c, rule in new.items():
            if rule == "folded":
                self._fold(name, c)
        self.rules[name] |= new
        self.live[name][list(new)] = False
        return bool(new)

    def _without_input(self, name: str) -> dict[int, Rule]:
        """Channels that are masked, or whose constant current needs no neuron."""
        found: dict[int, Rule] = {}
        spikes = self.model.neuron_masks.get(name)
        if spikes is not None:
            off = ~spikes.reshape(len(spikes), -1).any(axis=1)
            found |= {int(c): "masked" for c in np.flatnonzero(off)}
        constant, current_on = self._constant(name)
        if not constant.any():
            return found
        response = self._respond(name)
        for c in np.flatnonzero(constant & self.live[name]):
            if not response.pattern[:, c].any():
                found.setdefault(int(c), "silent" if current_on[c] else "masked")
                self.needs_time_steps |= not response.silent[c] and found[int(c)] == "silent"
            elif response.always[c] and self._foldable(name, int(c)):
                found.setdefault(int(c), "folded")
        return found

    def _constant(self, name: str) -> tuple[Array, Array]:
        """(channels without live input or with masked current, channels with unmasked current)."""
        projection = self._projection(name)
        weight = self.model.state[f"{projection.name}.weight"]
        inputs = self._live_inputs(projection)
        fed: Array = np.asarray(columns_used(weight, len(inputs))[:, inputs].any(axis=1))
        everything: Array = np.ones(len(fed), bool)
        current_on: Array = self.model.channel_masks.get(name, everything)
        return ~(fed & current_on), current_on

    def _projection(self, name: str) -> Projection:
        projection = self.graph[self.graph[name].inputs[0]]
        assert isinstance(projection, Projection)
        return projection

    def _live_inputs(self, projection: Projection) -> Array:
        source = source_population(self.graph, projection)
        if source is None:
            return np.ones(self.graph.shapes[projection.inputs[0]][0], bool)
        return self.live[source]

    def _respond(self, name: str) -> ConstantResponse:
        """Every channel's own batch norm and neuron on no input (and on what was folded)."""
        projection = self._projection(name)
        state = with_bias(self.model.state, projection, self.bias.get(projection.name))
        graph = self.graph
        if f"{projection.name}.bias" in state and not projection.bias:
            graph = graph.with_nodes({projection.name: replace(projection, bias=True)})
        module = replace(self.model, graph=graph, state=state).module()
        neuron = module.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        current = constant_current(module, projection)
        return respond(neuron.equation(), current, graph.time_steps)

    def _foldable(self, name: str, channel: int) -> bool:
        """Whether a channel that spikes at every step is a scalar in each consumer's bias.

        Not with a masked position, and not where zero padding cuts windows off.
        """
        spikes = self.model.neuron_masks.get(name)
        if spikes is not None and not spikes[channel].all():
            return False
        node = self.graph[name]
        while True:
            users = self.graph.consumers[node.name]
            if len(users) != 1:
                return False
            node = self.graph[users[0]]
            if isinstance(node, MaxPool | AvgPool):
                if node.padding != (0, 0):
                    return False
            elif isinstance(node, Convolution):
                return node.padding == (0, 0) or node.kernel == (1, 1)
            elif isinstance(node, Projection | Readout | Population):
                return isinstance(node, Linear)

    def _fold(self, name: str, channel: int) -> None:
        for consumer in weighted_consumers(self.graph, name) or ():
            assert isinstance(consumer, Projection)
            weight = self.model.state[f"{consumer.name}.weight"].astype(np.float64)
            by_channel = weight.reshape(len(weight), len(self.live[name]), -1)
            added = by_channel[:, channel].sum(axis=1)
            self.bias[consumer.name] = self.bias.get(consumer.name, 0.0) + added

    def _generate(self, name: str) -> None:
        """Channels that are left with a constant current: their pattern is all they are."""
        constant, _ = self._constant(name)
        candidates = np.flatnonzero(constant & self.live[name])
        if len(candidates) == 0:
            return
        if len(candidates) == int(self.live[name].sum()):
            raise RemovalError(
                f"{name}: all of its remaining channels spike in a fixed pattern; the output would "
                "not depend on the input. Prune less, or keep at least one channel's inputs"
            )
        pattern = self._respond(name).pattern
        self.generated[name] = {int(c): tuple(map(bool, pattern[:, c])) for c in candidates}

    def _read(self, name: str) -> Array:
        """Which channels have a nonzero synapse to something live."""
        live = self.live[name]
        read: Array = np.zeros(len(live), bool)
        for consumer in weighted_consumers(self.graph, name) or ():
            weight = self.model.state[f"{consumer.name}.weight"]
            used = columns_used(weight, len(read))
            rows: Array = np.ones(len(weight), bool)
            for behind in self.graph.consumers[consumer.name]:
                if behind in self.tied:
                    rows = self.live[behind] & self._current_on(behind)
            read |= used[rows].any(axis=0)
        return read

    def _current_on(self, name: str) -> Array:
        everything: Array = np.ones(len(self.live[name]), bool)
        return np.asarray(self.model.channel_masks.get(name, everything))

    def _round(self, name: str, multiple: int) -> None:
        """Take channels back, lowest index first, until the count is a multiple (or all are)."""
        back = [c for c, rule in self.rules[name].items() if rule != "folded"]
        kept = int(self.live[name].sum()) - len(self.generated[name])
        for c in sorted(back)[: -kept % multiple]:
            del self.rules[name][c]
            self.live[name][c] = True

    def _entry(self, name: str) -> LayerRemoval:
        projection = self._projection(name)
        weight = self.model.state[f"{projection.name}.weight"]
        spikes = self.model.neuron_masks.get(name)
        removed = dict(sorted(self.rules[name].items()))
        generated = self.generated[name]
        kept = [c for c in range(len(self.live[name])) if c not in removed and c not in generated]
        inputs = self._live_inputs(projection)
        grouped = isinstance(projection, Convolution) and projection.groups != 1
        after = weight.size // len(inputs) * int(inputs.sum()) // len(weight) * len(kept)
        return LayerRemoval(
            name,
            projection.name,
            len(self.live[name]),
            removed,
            self.tied[name],
            generated,
            0 if spikes is None else int((~spikes[[*kept, *generated]]).sum()),
            weight.size,
            weight.size if grouped else after,
        )


def planned(graph: SpikingGraph) -> list[Population]:
    """Populations fed by a projection, in execution order."""
    return [n for n in graph.populations if isinstance(graph[n.inputs[0]], Projection)]


def tied_reason(graph: SpikingGraph, population: Population) -> str | None:
    """Why channels of this population cannot be removed one by one; None if they can."""
    projection = graph[population.inputs[0]]
    if len(graph.consumers[projection.name]) != 1:
        return "its current is read elsewhere too"
    if population.generated:
        return "it holds generated channels already"
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


def columns_used(weight: Array, channels: int) -> Array:
    """(out, channels) bool: whether any weight from an input channel is not 0."""
    used: Array = (weight != 0).reshape(len(weight), channels, -1).any(axis=2)
    return used


def with_bias(
    state: Mapping[str, Array], projection: Projection, added: Array | None
) -> Mapping[str, Array]:
    """A state in which `added` (out,) is added to a projection's output, before batch norm."""
    if added is None:
        return state
    changed = dict(state)
    if projection.norm is not None and not projection.bias:
        name, sign = f"{projection.norm.name}.running_mean", -1.0
    else:
        name, sign = f"{projection.name}.bias", 1.0
    before = state[name].astype(np.float64) if name in state else 0.0
    changed[name] = (before + sign * added).astype(np.float32)
    return changed
