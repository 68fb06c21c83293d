"""Making a removal plan: the fixpoint of constants (forwards) and liveness (backwards).

Each removal can make others possible: a removed column may leave a row without inputs, a removed
row may leave a producer unread. The order does not change the result. Decisions are made per
channel group (`prune.channel_groups`): a channel of a residual stream goes for all its members or
for none, and only if whatever reads the stream finds it always 0, or does not weigh it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, dispatch, errors, memory
from soul_deploy.lowering import deploy, footprint
from soul_deploy.model.model import Model, Validity
from soul_deploy.prune import channel_groups as grouping
from soul_deploy.prune.removal import connections, constants, fed_back
from soul_deploy.prune.removal.plan import LayerRemoval, RemovalPlan, Rule
from soul_deploy.runtime.dynamics.parallel import ParallelEquation


def plan_removal(
    model: Model,
    *,
    round_to: int = 1,
    residual: grouping.Residual = "coupled",
    max_memory: int | None = None,
    trained_on: bool = False,
) -> RemovalPlan:
    """Decide what can be removed from a masked or zeroed network.

    round_to: channel counts stay multiples of this (dense backends are faster then); channels that
    could go stay, masked. residual: what goes from residual streams: nothing ("internal"), channels
    of all their members ("coupled"), and silent channels of single branches too ("scatter").
    max_memory: bytes that planning may take besides the weights; None: what the machine has.
    trained_on: the weights will change, so only what the masks alone keep at 0 goes.
    Raises LimitError for more, and RemovalError if a layer that nothing bypasses would lose its
    last channel: the output would then not depend on the input.
    """
    errors.require_least(1, round_to=round_to)
    errors.require_known("residual", residual, grouping.RESIDUAL)
    allowed = memory.machine_memory() if max_memory is None else max_memory
    footprint.require_planning(model.graph, allowed)
    return _Planner(model, residual, trained_on).plan(round_to)


class _Planner:
    """`live` shrinks until nothing more can go; `bias` collects what folded channels add."""

    def __init__(self, model: Model, residual: grouping.Residual, trained_on: bool) -> None:
        self.graph, self.model, self.residual = model.graph, model, residual
        self.trained_on = trained_on
        groups = grouping.channel_groups(self.graph)
        self.groups = [_restricted(group, residual) for group in groups]
        self.group_of = {name: group for group in self.groups for name in group.nodes}
        self.cut = [group for group in self.groups if group.whole is None]
        self.live = {group.name: np.ones(group.channels, bool) for group in self.groups}
        self.rules: dict[str, dict[int, Rule]] = {group.name: {} for group in self.groups}
        self.generated: dict[str, dict[int, tuple[bool, ...]]] = {}
        self.scattered: dict[str, list[int]] = {}
        self.bias: dict[str, Array] = {}
        self.known: dict[str, constants.Known] = {}
        self.responses: dict[str, tuple[Array, constants.ConstantResponse]] = {}
        self.needs_time_steps = False
        width = {user: g.channels for g in self.groups for _, user in g.readers}
        self.connections = connections.Connections(model, width)

    def plan(self, round_to: int) -> RemovalPlan:
        while self._pass():
            pass
        source = self.graph.readout.inputs[0]
        if not (self.live[self.group_of[source].name] & ~self.known[source].zero).any():
            raise errors.RemovalError(
                f"{source}: none of its channels ever spikes; the output would not depend on the "
                "input. Prune less, or keep at least one channel"
            )
        for group in self.cut if not self.trained_on else ():
            if group.free:
                self._generate(group)
        for group in self.cut:
            self._round(group, round_to)
        if self.residual == "scatter":
            for group in self.cut:
                self._scatter(group, round_to)
        one_t = self.needs_time_steps or any(self.generated.values())
        validity = Validity(self.graph.time_steps if one_t else None, one_t)
        return RemovalPlan(self._entries(), validity, dict(self.bias))

    def _pass(self) -> bool:
        """One sweep forwards and one backwards; whether anything changed."""
        changed = self._forwards()
        for group in self.cut:
            changed |= self._remove(group, self._silent(group))
        for group in reversed(self.cut) if not self.trained_on else ():
            seen = np.zeros(group.channels, bool)  # by something live, where it is not always 0
            for source, reader in group.readers:
                seen |= self._weighed(reader) & ~self.known[source].zero
            for name, back in self._feedbacks(group):
                feeding = back.among(self.live[group.name])
                seen = fed_back.also_seen(feeding, seen, self.known[name].zero)
            changed |= self._remove(group, {int(c): "unread" for c in np.flatnonzero(~seen)})
        return changed

    def _remove(self, group: grouping.ChannelGroup, found: Mapping[int, Rule]) -> bool:
        new = {c: rule for c, rule in found.items() if self.live[group.name][c]}
        if new and len(new) == int(self.live[group.name].sum()):
            if not grouping.reaches_readout(self.graph, group.nodes):
                raise errors.RemovalError(
                    f"{group.title}: all of its remaining channels could go "
                    f"({', '.join(sorted(set(new.values())))}); the output would not depend on "
                    "the input. Prune less, or keep at least one channel"
                )
            del new[min(new)]  # a block without channels is no block
        self.rules[group.name] |= new
        self.live[group.name][list(new)] = False
        silent = [c for c, rule in new.items() if rule != "folded"]
        for source, reader in group.readers if silent else ():
            known = self.known[source]
            unproven = known.zero & ~known.lasting & self._weighed(reader)
            self.needs_time_steps |= bool(unproven[silent].any())
        for name, back in self._feedbacks(group) if silent else ():
            known, used = self.known[name], (self.live[group.name] @ back.fed)
            self.needs_time_steps |= bool((known.zero & ~known.lasting & used)[silent].any())
        return bool(new)

    def _feedbacks(self, group: grouping.ChannelGroup) -> Iterator[tuple[str, fed_back.FedBack]]:
        """The populations of a group that have a feedback, and what that connects."""
        for name in group.populations:
            if name in self.graph.feedbacks:
                yield name, self.connections.fed_back(name)

    def _forwards(self) -> bool:
        """What is known of each node's output, in order; whether a channel was folded."""
        folded = False
        for node in self.graph.nodes[:-1]:
            self.known[node.name] = known_of(node, self)
            if node.fires and not self.trained_on:
                folded |= self._fold(node)
        return folded

    def current(self, node: ir.Projection) -> constants.Known:
        """Rows without live input, or masked: a constant. What is trained on is one if masked."""
        if self.trained_on:
            return constants.masked_current(node, self.connections.masks.get(node.name))
        source, used = node.inputs[0], self.connections.used(node.name)
        live, known = self.live[self.group_of[source].name], self.known[source]
        on = self.connections.masks.get(node.name)
        constant = ~(used @ (live & ~known.zero))  # of flags, @ is "any", and stops at the first
        lasting = ~(used @ (live & known.zero & ~known.lasting))
        if on is not None:
            constant, lasting = constant | ~on, lasting | ~on
        if not constant.any():
            return constants.Known.nothing(len(constant))
        state = connections.with_bias(self.model.state, node, self.bias.get(node.name))
        current = constants.constant_current(node, state, on)
        return constants.Known(np.where(constant, current, np.float32(np.nan)), lasting)

    def spikes(self, node: ir.Population) -> constants.Known:
        """Channels that never spike: on their constant current, or because all are masked."""
        if node.feedback is not None:
            return self._fed_back_spikes(node)
        current = self.known[node.inputs[0]]
        known = constants.Known.nothing(self.graph.shapes[node.name][0])
        constant = np.flatnonzero(~np.isnan(current.value))
        if node.neuron.parallel:
            still = self._still(node, current.value)
            known.value[still], known.lasting[still] = 0, True
        elif len(constant) and _alike(node):
            response = self._respond(node, current.value)
            silent = ~response.pattern[:, constant].any(axis=0)
            known.value[constant[silent]] = 0
            known.lasting[constant] = (response.silent & current.lasting)[constant]
        off = self.connections.off.get(node.name)
        if off is not None:
            known.value[off], known.lasting[off] = 0, True
        return known

    def _fed_back_spikes(self, node: ir.Population) -> constants.Known:
        """As `spikes`, of neurons on their own spikes of the step before too."""
        current, back = self.known[node.inputs[0]], self.connections.fed_back(node.name)
        total = current.value + back.bias
        channels = len(total)
        off = self.connections.off.get(node.name, np.zeros(channels, bool))
        still, forever = np.zeros(channels, bool), np.zeros(channels, bool)
        if _alike(node) and not np.isnan(total).all():
            response = self._respond(node, total)
            still = ~np.isnan(total) & ~response.pattern.any(axis=0)
            forever = still & response.silent & current.lasting
        feeding = back.among(self.live[self.group_of[node.name].name])
        silent = fed_back.unreached(feeding, still, off)
        known = constants.Known.nothing(channels)
        known.value[silent] = 0
        known.lasting[silent] = fed_back.unreached(feeding, forever, off)[silent]
        return known

    def _still(self, node: ir.Population, current: Array) -> Array:
        """bool (C,): channels of neurons that mix the steps which are silent, having no input.

        Other constants are left to run: their sum over the steps may round either way.
        """
        equation = deploy.equation_of(self.graph, node, self.model.state)
        assert isinstance(equation, ParallelEquation)
        still: Array = (current == 0) & (not equation.fires_at_rest)
        return still

    def _respond(self, node: ir.Population, current: Array) -> constants.ConstantResponse:
        """Neurons on their constant currents; nothing is said of the channels without one."""
        before = self.responses.get(node.name)
        if before is None or not np.array_equal(before[0], current, equal_nan=True):
            given = np.where(np.isnan(current), np.float32(0), current)
            equation = deploy.equation_of(self.graph, node, self.model.state)
            before = current, constants.respond(equation, given, self.graph.time_steps)
            self.responses[node.name] = before
        return before[1]

    def _fold(self, node: ir.Node) -> bool:
        """Turn free channels that spike at every step into biases; whether there were any."""
        group, current = self.group_of[node.name], self.known[node.inputs[0]]
        if node.feedback is not None:  # at the first step nothing is fed back
            return False
        if group.whole is not None or not group.free or np.isnan(current.value).all():
            return False
        if node.name not in self.responses:
            return False
        live, response = self.live[group.name], self.responses[node.name][1]
        able = response.always & ~np.isnan(current.value) & ~self.known[node.name].zero & live
        able[able] = constants.foldable(self.model, node.name, np.flatnonzero(able))
        found = [int(c) for c in np.flatnonzero(able)]
        rules: dict[int, Rule] = dict.fromkeys(found, "folded")
        changed = self._remove(group, rules) if found else False
        for channel in found:
            if not live[channel]:
                self.needs_time_steps |= not current.lasting[channel]
                for _, reader in group.readers:
                    weight = self.model.state[f"{reader}.weight"].astype(np.float64)
                    added = weight.reshape(len(weight), group.channels, -1)[:, channel].sum(axis=1)
                    self.bias[reader] = self.bias.get(reader, 0.0) + added
        return changed

    def _silent(self, group: grouping.ChannelGroup) -> dict[int, Rule]:
        """Channels that are 0 for whoever reads the group."""
        sources = {source for source, _ in group.readers}
        zero = np.all([self.known[name].zero for name in sources], axis=0)
        masks, off = self.connections.masks, self.connections.off
        masked = np.zeros(group.channels, bool)
        for name in group.projections:
            masked |= ~masks[name] if name in masks else False
        for name in group.populations:
            masked |= off.get(name, False)
        return {int(c): "masked" if masked[c] else "silent" for c in np.flatnonzero(zero)}

    def _weighed(self, reader: str) -> Array:
        """Which channels have a nonzero synapse to something live in `reader`."""
        used = self.connections.used(reader)
        if reader == self.graph.readout.name:
            return np.asarray(used.any(axis=0))
        rows = self.connections.rows(self.graph.projection(reader))
        return np.asarray((self.live[self.group_of[reader].name] & rows) @ used)

    def _generate(self, group: grouping.ChannelGroup) -> None:
        """Channels that are left with a constant current: their pattern is all they are."""
        (name,) = group.populations
        if name in self.graph.feedbacks:
            return
        if self.graph.edges[name] != ir.SPIKE or name not in self.responses:
            return  # a pattern holds spikes, the same ones of all of a channel's neurons
        constant = ~np.isnan(self.known[self.graph[name].inputs[0]].value)
        candidates = [int(c) for c in np.flatnonzero(constant & self.live[group.name])]
        if candidates and len(candidates) == int(self.live[group.name].sum()):
            if not grouping.reaches_readout(self.graph, group.nodes):
                raise errors.RemovalError(
                    f"{name}: all of its remaining channels spike in a fixed pattern; the output "
                    "would not depend on the input. Prune less, or keep at least one channel's "
                    "inputs"
                )
            del candidates[0]
        if candidates:
            pattern = self.responses[name][1].pattern
            self.generated[name] = {c: tuple(map(bool, pattern[:, c])) for c in candidates}

    def _round(self, group: grouping.ChannelGroup, multiple: int) -> None:
        """Take channels back, lowest index first, until the count is a multiple (or all are)."""
        rules = self.rules[group.name]
        back = sorted(c for c, rule in rules.items() if rule != "folded")
        generated = sum(len(self.generated.get(name, ())) for name in group.populations)
        kept = int(self.live[group.name].sum()) - generated
        for c in back[: -kept % multiple]:
            del rules[c]
            self.live[group.name][c] = True

    def _scatter(self, group: grouping.ChannelGroup, multiple: int) -> None:
        """Silent channels of single branches; every branch keeps one, and the stream its own."""
        for name in grouping.scatter_branches(self.graph, group):
            known, live = self.known[name], self.live[group.name]
            silent = [int(c) for c in np.flatnonzero(live & known.zero)]
            kept = int(live.sum()) - len(silent)
            gone = silent[-kept % multiple if kept else min(multiple, len(silent)) :]
            self.needs_time_steps |= not known.lasting[gone].all()
            self.scattered[name] = gone

    def _entries(self) -> tuple[LayerRemoval, ...]:
        """One per population, and per projection whose current no population reads directly."""
        found: list[LayerRemoval] = []
        for node in self.graph.nodes:
            if node.fires:
                source = self.graph[self.graph.masked_projection(node.name)]
                told = any(entry.projection == source.name for entry in found)
                found.append(self._entry(node.name, None if told else source))
            elif node.projects and not self.graph.charged_by(node.name):
                found.append(self._entry(node.name, node))
        return tuple(found)

    def _entry(self, name: str, projection: ir.Node | None) -> LayerRemoval:
        group = self.group_of[name]
        removed: dict[int, Rule] = dict(self.rules[group.name])
        removed |= dict.fromkeys(self.scattered.get(name, ()), "scattered")
        generated = self.generated.get(name, {})
        parts = group.channels, dict(sorted(removed.items())), group.whole, generated
        entry = LayerRemoval(name, None, *parts, stream=None if group.free else group.title)
        spikes = self.model.neuron_masks.get(name)
        if spikes is not None:
            entry = replace(entry, masked_neurons=int((~spikes[list(entry.outputs)]).sum()))
        if projection is None or not projection.projects:
            return entry
        size = self.model.state[f"{projection.name}.weight"].size
        inputs = self.live[self.group_of[projection.inputs[0]].name]
        rows = len(entry.kept) if group.whole is None else group.channels
        after = size // len(inputs) * int(inputs.sum()) // group.channels * rows
        return replace(entry, projection=projection.name, synapses=size, synapses_after=after)


@dispatch.operation_table(ir.Node)
def known_of(node: ir.Node, plan: _Planner) -> constants.Known:
    """What is known of a node's output, from what is known of its inputs."""
    raise ir.no_entry(node, "planning of a removal")


known_of.on(ir.Input)(lambda node, plan: constants.Known.nothing(node.shape[0]))
known_of.on(ir.Projection)(lambda node, plan: plan.current(node))
known_of.on(ir.Population)(lambda node, plan: plan.spikes(node))
known_of.on(ir.AvgPool, ir.AdaptiveAvgPool)(
    lambda node, plan: plan.known[node.inputs[0]].averaged()
)
known_of.on(ir.Scale)(lambda node, plan: plan.known[node.inputs[0]].scaled(node, plan.model.state))


@known_of.on(ir.ChannelNorm)
def _normed(node: ir.ChannelNorm, plan: _Planner) -> constants.Known:
    axes = len(plan.graph.shapes[node.name])
    known = plan.known[node.inputs[0]].normed(node, plan.model.state, axes)
    on = plan.connections.masks.get(plan.graph.masked_norms.get(node.name, ""))
    if on is not None:
        known.value[~on], known.lasting[~on] = 0, True
    return known


known_of.on(ir.Scatter)(lambda node, plan: plan.known[node.inputs[0]].scattered(node))
known_of.on(ir.Merge)(
    lambda node, plan: constants.known_behind(node, [plan.known[name] for name in node.inputs])
)
known_of.refuse(
    ir.Readout,
    error=lambda node: errors.RemovalError(f"{node.name}: nothing can be removed behind it"),
)


@known_of.on(ir.MaxPool, ir.Flatten)
def _same(node: ir.Node, plan: _Planner) -> constants.Known:
    if grouping.keeps_channels(plan.graph, node):
        return plan.known[node.inputs[0]]
    return constants.Known.nothing(plan.graph.shapes[node.name][0])


def _restricted(group: grouping.ChannelGroup, residual: grouping.Residual) -> grouping.ChannelGroup:
    if residual == "internal" and not group.free and group.whole is None:
        return replace(group, whole="part of a residual stream (residual internal)")
    return group


def _alike(node: ir.Population) -> bool:
    """Whether a channel's neurons have the same numbers."""
    return all(kind != "neuron" for _, kind in node.neuron.tensors)
