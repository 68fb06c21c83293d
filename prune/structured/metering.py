"""Measuring what a network with channel masks costs, and what each of its channels would.

SynOps are those of the validation split, as docs/counting.md defines them, the head included:
spikes delivered times live fan-out. Each layer's count is linear in what its source delivers, so
the sums over time and samples, by position, give the exact integer that
`analysis.synops.count_model` gives.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis import connectivity
from soul_deploy.base import Array, brief
from soul_deploy.base.errors import require
from soul_deploy.data import datasets
from soul_deploy.lowering import deploy, linear_operators
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual, channel_groups
from soul_deploy.prune.delivered import (
    Sums,
    counted_layers,
    delivered,
    entry_of,
    node_of,
    sources,
    synops_sum,
)
from soul_deploy.prune.removal import apply, planner
from soul_deploy.prune.structured.costs import Costs, PairCosts, pair_sums
from soul_deploy.prune.structured.selection import Flags, PruningUnit, Values
from soul_deploy.prune.target import Quantity
from soul_deploy.training.state import Tree, array_of, tree_of


@brief
@dataclass(frozen=True)
class Reading:
    """What was measured of a network.

    cost     of the network with its present masks: live synapses, values, or SynOps per sample
    costs    what its channels cost, in parts of 1/samples
    dense    the cost that shares are of, where that is not what the network costs at first: all
             its synapses
    """

    cost: float
    costs: Costs
    samples: int = 1
    dense: float | None = None


class Meter:
    """Measures one quantity of a module whose `units` are pruned, again and again.

    What a closed channel would deliver cannot be measured while it is closed: what it last
    delivered stands for it. residual: as the removal at the end has it.
    """

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data | None,
        units: Sequence[PruningUnit],
        quantity: Quantity,
        residual: Residual,
    ) -> None:
        self.module, self.data, self.units = module, data, units
        self.quantity, self.residual = quantity, residual
        self.known: dict[str, Tensor] = {}
        self._wiring = _Wiring(module.graph, units)

    def state(self) -> Tree:
        """What each node last delivered, by position."""
        return {"known": dict(self.known)}

    def restore(self, tree: Tree) -> None:
        held, graph = tree_of(tree, "known"), self.module.graph
        found = {name: torch.from_numpy(np.array(array_of(held, name))) for name in held}
        for name, total in found.items():
            fits = name in self.sources
            fits = fits and tuple(total.shape) == graph.shapes[node_of(graph, name)]
            require(fits and total.dtype == torch.float64, f"{name}: delivered values do not fit")
        self.known = found

    @property
    def keep(self) -> dict[str, Flags]:
        """Which channels of each unit are open now."""
        masks = self.module.channel_masks
        return {u.name: masks[u.masks[0]].keep.detach().cpu().numpy() > 0 for u in self.units}

    @property
    def sources(self) -> tuple[str, ...]:
        """The entries of Sums that are measured."""
        graph = self.module.graph
        found = dict.fromkeys([*sources(graph), *(node.name for node in graph.populations)])
        return tuple(n for n in found if graph.edges[node_of(graph, n)].kind != "analog")

    def model(self) -> Model:
        """The network as it is now."""
        gates = self.module.neuron_gates
        masks = {name: gate().detach().cpu().numpy() > 0 for name, gate in gates.items()}
        return replace(from_module(self.module, ModelInfo()), neuron_masks=masks)

    def measure(self) -> Reading:
        """What the network costs now, and what its channels do."""
        return QUANTITIES[self.quantity](self, self.model())

    def start_from(self, other: "Meter", channels: Mapping[str, Array]) -> None:
        """Take over what is known to the meter of the whole network.

        channels: mask -> which channels of the whole network are left.
        """
        masks = {unit.name: unit.masks[0] for unit in self.units}
        for name in set(self.sources).intersection(other.known):
            for unit in self._wiring.alone_before(name):
                self.known[name] = other.known[name][channels[masks[unit]]]

    def remember(self, sums: Sums) -> None:
        """Take over what open channels delivered; of closed ones the last known stays."""
        known = {name: total.clone() for name, total in sums.items()}
        for name in set(known).intersection(self.known):
            for unit in self._wiring.alone_before(name):
                closed = torch.from_numpy(~self.keep[unit])
                part = slice(0, len(closed))
                known[name][part][closed] = self.known[name][part][closed]
        self.known = known

    def costs(self, pairs: Mapping[str, tuple[Values, Values]], sums: Sums | None) -> Costs:
        """Of (pairs, per_row) by projection."""
        wiring = self._wiring
        parts = (
            PairCosts(name, *found, wiring.writers.get(name), wiring.readers(name, sums))
            for name, found in pairs.items()
        )
        return Costs(tuple(parts), {unit.name: unit.channels for unit in self.units})


def _synops(meter: Meter, model: Model) -> Reading:
    assert meter.data is not None
    sums, samples = (
        delivered(meter.module, meter.data, meter.data.validation, meter.sources),
        len(meter.data.validation),
    )
    meter.remember(sums)
    pairs = {}
    for layer in counted_layers(deploy.lower(replace(model, channel_masks={}))):
        live = None if layer.live is None else torch.from_numpy(layer.live.astype(np.float64))
        arriving = meter.known[entry_of(model.graph, layer.name)]
        found = pair_sums(layer.linear.operator, arriving, live)
        pairs[layer.name] = found, np.zeros(len(found))
    cost = synops_sum(deploy.lower(model), sums) / samples
    return Reading(cost, meter.costs(pairs, meter.known), samples)


def _connectivity(meter: Meter, model: Model) -> Reading:
    """Planned from synapses between open channels, told with what the input reaches."""
    pairs, weighed = {}, {node.name for node in model.graph.projections}
    weighed |= {back.name for back in model.graph.feedbacks.values()}
    for layer in deploy.lower(replace(model, channel_masks={})).layers:
        if layer.name not in weighed:  # poolings of their own, the readout
            continue
        live = None if layer.live is None else torch.from_numpy(layer.live.astype(np.float64))
        operator = layer.linear.operator
        ones = torch.ones(operator.in_shape, dtype=torch.float64)
        between = pair_sums(operator, ones, live)
        pairs[layer.name] = between, np.zeros(len(between))
    found = connectivity.connectivity(model)
    return Reading(found.live, meter.costs(pairs, None), dense=found.dense)


def _params(meter: Meter, model: Model) -> Reading:
    """The cost is that of the network after the removal, which may find more than the masks."""
    graph, pairs = model.graph, {}
    backs = (b for b in graph.feedbacks.values() if isinstance(b, ir.Projection))
    for node in (*graph.projections, *backs):
        per_row = float(node.bias) + (2.0 if node.norm else 0.0)
        found = _weights(graph, node, node.weight_shape)
        pairs[node.name] = found, np.full(len(found), per_row)
    if graph.readout.linear:
        shape = model.state[f"{graph.readout.name}.weight"].shape
        found = _weights(graph, graph.readout, shape)
        pairs[graph.readout.name] = found, np.zeros(len(found))
    costs = meter.costs(pairs, None)
    rest = apply.parameters(model.state) - costs.total(costs.all_open())
    compact = apply.remove(model, planner.plan_removal(model, residual=meter.residual))
    return Reading(apply.parameters(compact.state), replace(costs, fixed=rest))


def _weights(graph: ir.SpikingGraph, node: ir.Node, shape: ir.Shape) -> Values:
    """Weights of each pair of channels, (C_out, C_in)."""
    source, _ = linear_operators.walk_back(graph, node.name)
    channels = graph.shapes[source][0]
    outputs, inner = shape[0], channels // node.groups
    each = math.prod(shape[1:]) / inner
    blocks = np.kron(np.eye(node.groups), np.ones((outputs // node.groups, inner)))
    return np.asarray(blocks * each)


QUANTITIES: Mapping[Quantity, Callable[[Meter, Model], Reading]] = MappingProxyType(
    {"synops": _synops, "connectivity": _connectivity, "params": _params}
)
"""How each quantity is measured."""


class _Wiring:
    """Whose channels the rows and columns of each projection are."""

    def __init__(self, graph: ir.SpikingGraph, units: Sequence[PruningUnit]) -> None:
        self.graph, self.units = graph, units
        self._composed = deploy.composed_graph(graph)
        self.writers = {graph.masked_projection(m): unit.name for unit in units for m in unit.masks}
        self.writers |= {
            graph.feedbacks[p].name: unit.name
            for unit in units
            for p in unit.populations
            if p in graph.feedbacks
        }
        self.weighers = tuple(node.name for node in graph.nodes if node.weighs)
        groups = channel_groups(graph)
        self._populations = {name: g.populations for g in groups for name in g.nodes}

    def readers(self, name: str, sums: Sums | None) -> dict[str, Values]:
        """Unit -> which share of each column of `name` goes with the unit's channel.

        Where units meet in a stream, its share of the spikes; of synapses none, since the others
        keep the channel open.
        """
        source, _ = linear_operators.walk_back(self._composed, name)
        width = self.graph.shapes[source][0]
        found = {}
        for unit in self.units:
            mine, all_of_them = self._before(source, unit)
            if mine and mine == all_of_them:
                found[unit.name] = np.ones(width)
            elif mine and sums is not None:
                own, every = (_fired(sums, names, width) for names in (mine, all_of_them))
                found[unit.name] = np.divide(own, every, out=np.zeros(width), where=every > 0)
        return found

    def alone_before(self, source: str) -> Iterator[str]:
        """The unit without whose channels a node delivers nothing, if there is one."""
        for unit in self.units:
            mine, all_of_them = self._before(source, unit)
            if mine and mine == all_of_them:
                yield unit.name

    def _before(self, source: str, unit: PruningUnit) -> tuple[set[str], set[str]]:
        """The populations that make the channels of an entry of Sums: those of a unit, and all."""
        source = node_of(self.graph, source)
        made = self.graph.needed([source]).intersection(self._populations.get(source, ()))
        return made.intersection(unit.populations), made


def _fired(sums: Sums, names: set[str], width: int) -> Values:
    """Spikes of populations by channel, (C,)."""
    total = np.zeros(width)
    for name in sorted(names):
        total += sums[name].reshape(width, -1).sum(1).numpy()
    return total
