"""What method S decides about as one: the channels of one population, or of a residual stream."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from soul_deploy.ir import SpikingGraph
from soul_deploy.lowering.fan_out import population_behind
from soul_deploy.prune.channel_groups import (
    ChannelGroup,
    Residual,
    channel_groups,
    scatter_branches,
)
from soul_deploy.prune.structured.selection import ChannelPlan, Values, prunable


@dataclass(frozen=True)
class PruningUnit:
    """Channels that stay or go together.

    masks        the channel masks that are set alike: populations, or projections whose current
                 meets others before any neuron
    populations  whose activity is the score: its mean over them
    """

    name: str
    channels: int
    masks: tuple[str, ...]
    populations: tuple[str, ...]


def pruning_units(
    graph: SpikingGraph, residual: Residual, names: Collection[str] | None = None
) -> tuple[PruningUnit, ...]:
    """The units that hold a population of `names` (None: all), in execution order.

    internal: populations outside residual streams, which a layer of their own feeds. coupled: each
    stream too, as one. scatter: besides the former, branches that a merge adds to the stream.
    What a readout without weights counts are the classes themselves, and belongs to no unit.
    """
    alone = {node.name for node in prunable(graph)}
    classes = voters(graph)
    found: list[PruningUnit] = []
    for group in channel_groups(graph):
        if len(group.projections) == 1 and not group.merges:
            source = group.projections[0]
            single = [name for name in graph.consumers[source] if name in alone]
            found += [_of_one(name, group) for name in single]
        elif group.whole is None and residual == "coupled" and group.projections:
            found.append(_of_stream(graph, group))
        elif group.whole is None and residual == "scatter":
            found += [_of_one(name, group) for name in scatter_branches(graph, group)]
    found = [unit for unit in found if not classes.intersection(unit.populations)]
    if names is not None:
        found = [unit for unit in found if set(unit.populations).intersection(names)]
    order = {node.name: i for i, node in enumerate(graph.populations)}
    return tuple(sorted(found, key=lambda unit: order[unit.populations[0]]))


def voters(graph: SpikingGraph) -> set[str]:
    """Populations whose channels are classes: a readout without weights reads them."""
    if graph.readout.linear:
        return set()
    found, pending = set(), list(graph.readout.inputs)
    while pending:
        node = graph[pending.pop()]
        if node.fires:
            found.add(node.name)
        elif not node.projects:
            pending += node.inputs
    return found


def _of_one(name: str, group: ChannelGroup) -> PruningUnit:
    return PruningUnit(name, group.channels, (name,), (name,))


def _of_stream(graph: SpikingGraph, group: ChannelGroup) -> PruningUnit:
    masks = []
    for projection in group.projections:
        masks.append(population_behind(graph, projection) or projection)
    return PruningUnit(group.title, group.channels, tuple(masks), group.populations)


def averaged(values: Mapping[str, Values], units: Iterable[PruningUnit]) -> dict[str, Values]:
    """Scores of units from those of populations."""
    return {unit.name: np.mean([values[p] for p in unit.populations], axis=0) for unit in units}


def averaged_gradients(
    values: Mapping[str, Values], units: Iterable[PruningUnit]
) -> dict[str, Values]:
    """Regrowth gradients of units from those of masks."""
    return {unit.name: np.mean([values[mask] for mask in unit.masks], axis=0) for unit in units}


def by_mask(plan: ChannelPlan, units: Iterable[PruningUnit]) -> ChannelPlan:
    """The plan with a layer per mask instead of per unit."""
    masks = {unit.name: unit.masks for unit in units}
    return ChannelPlan(
        tuple(replace(layer, name=mask) for layer in plan.layers for mask in masks[layer.name])
    )
