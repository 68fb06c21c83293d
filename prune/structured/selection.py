"""Which channels stay: exact counts over all layers, decided from scores and gradients.

After SCA, "Towards Efficient Deep Spiking Neural Networks Construction with Spiking Activity based
Pruning" (Li et al., ICML 2024): the most active channels of the whole network are kept, then some
of the rest come back by the gradient of their batch-norm scale. Deciding is pure; applying is
setting masks. Decided about as one are the channels of a population, or of a residual stream.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from soul_deploy.base import brief
from soul_deploy.base.errors import SoulDeployError, UsageError
from soul_deploy.ir import Population, SpikingGraph
from soul_deploy.prune.channel_groups import Residual, channel_groups, scatter_branches

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
KeptCount = Literal["round", "floor"]
KEPT_COUNT: tuple[KeptCount, ...] = get_args(KeptCount)
ROUNDED: Mapping[str, Callable[[float], int]] = {
    "round": round,
    "floor": lambda kept: math.floor(kept + 1e-9),  # (1 - 0.9) · 10 is 1, not 0.99…
}


@dataclass(frozen=True)
class Guard:
    """What every layer keeps whatever its scores.

    min_channels  channels
    min_keep      fraction of the layer's channels, rounded up
    round_to      kept counts are raised to a multiple of this (the layer's width at most)
    """

    min_channels: int = 1
    min_keep: float = 0.0
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.min_channels < 1 or self.round_to < 1:
            raise UsageError(
                f"min_channels {self.min_channels} and round_to {self.round_to} must be at least 1"
            )
        if not 0 <= self.min_keep <= 1:
            raise UsageError(f"min_keep {self.min_keep:g} must be between 0 and 1")

    def floor(self, channels: int) -> int:
        """The fewest channels that a layer of `channels` keeps."""
        return min(channels, max(self.min_channels, math.ceil(self.min_keep * channels - 1e-9)))

    def rounded(self, kept: int, channels: int) -> int:
        """`kept` raised to a multiple of `round_to`."""
        return min(channels, -(-kept // self.round_to) * self.round_to)


@brief
@dataclass(frozen=True)
class LayerChannels:
    """One layer's decision: flags and values over its channels."""

    name: str
    keep: Flags
    regrown: Flags
    score: Values
    gradient: Values


@brief
@dataclass(frozen=True)
class ChannelPlan:
    """Which channels of which layers stay: inert, printable, applied by setting masks."""

    layers: tuple[LayerChannels, ...]

    @property
    def kept(self) -> int:
        return sum(int(layer.keep.sum()) for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(len(layer.keep) for layer in self.layers)

    def keeps_as(self, other: "ChannelPlan") -> bool:
        """Whether both, of the same units, keep the same channels."""
        pairs = zip(self.layers, other.layers, strict=True)
        return all(bool((mine.keep == their.keep).all()) for mine, their in pairs)

    def rows(self) -> list[tuple[str, int, int, int, float, float]]:
        """(layer, channels, kept, of these by gradient, lowest kept score, highest cut score)."""
        return [
            (
                layer.name,
                len(layer.keep),
                int(layer.keep.sum()),
                int(layer.regrown.sum()),
                float(layer.score[layer.keep & ~layer.regrown].min(initial=math.inf)),
                float(layer.score[~layer.keep].max(initial=0.0)),
            )
            for layer in self.layers
        ]


@dataclass(frozen=True)
class Budget:
    """How many channels stay in all, and how many of these are chosen by gradient."""

    kept: int
    regrown: int

    @staticmethod
    def of(
        channels: int, ratio: float, regrow_ratio: float, kept_count: KeptCount = "round"
    ) -> "Budget":
        """(1 - p) N channels kept, rounded or (Soul, the authors) floored; round(q N) by gradient.

        Floored is 3801 of VGG16's 4224 at p = 0.1, as in the authors' example mask; rounded 3802.
        """
        kept = ROUNDED[kept_count]((1 - ratio) * channels)
        return Budget(kept, min(kept, round(regrow_ratio * channels)))


def prunable(graph: SpikingGraph) -> tuple[Population, ...]:
    """Populations whose current comes from a projection that feeds nothing else."""
    return tuple(
        node
        for node in graph.populations
        if graph[graph.masked_projection(node.name)].projects
        and graph.population_fed_by(graph.masked_projection(node.name)) == node.name
    )


def channels_of(graph: SpikingGraph, population: str) -> int:
    """How many channels of `population` have a current, and so a mask."""
    return graph.shapes[graph.masked_projection(population)][0]


def check_budget(budget: Budget, widths: Mapping[str, int], guard: Guard) -> None:
    """Raise UsageError if the layers' floors alone need more channels than may stay."""
    floors = sum(guard.floor(width) for width in widths.values())
    if floors > budget.kept:
        raise UsageError(
            f"prune_ratio leaves {budget.kept} of {sum(widths.values())} channels, but "
            f"min_channels {guard.min_channels} and min_keep {guard.min_keep:g} keep {floors}; "
            "lower one of them"
        )


def decide(
    scores: Mapping[str, Values], gradients: Mapping[str, Values], budget: Budget, guard: Guard
) -> ChannelPlan:
    """The plan for these scores (S + |V| by default) and gradients (both (C,) per layer).

    First each layer's floor by score, then the best scores anywhere, then, up to the budget, the
    largest |gradient| among the rest. Equal values go to the earlier layer and channel. Raises
    UsageError (see check_budget), or SoulDeployError for values that are not finite.
    """
    check_budget(budget, {name: len(values) for name, values in scores.items()}, guard)
    score = np.concatenate([np.asarray(values, np.float64) for values in scores.values()])
    slope = np.abs(np.concatenate([np.asarray(gradients[n], np.float64) for n in scores]))
    if not (np.isfinite(score).all() and np.isfinite(slope).all()):
        raise SoulDeployError("scores or gradients are not finite; lower --learning_rate")
    bounds = np.cumsum([0, *(len(values) for values in scores.values())])
    reserved = np.zeros(len(score), np.bool_)
    for start, stop in pairwise(bounds):
        best = _ranked(score[start:stop])[: guard.floor(int(stop - start))]
        reserved[start + best] = True
    keep = _filled(reserved, score, budget.kept - budget.regrown)
    regrown = _filled(keep, slope, budget.kept) & ~keep
    keep |= regrown
    layers = []
    for name, (start, stop) in zip(scores, pairwise(bounds), strict=True):
        part = slice(start, stop)
        layers.append(LayerChannels(name, keep[part], regrown[part], score[part], slope[part]))
    return raised(ChannelPlan(tuple(layers)), guard)


def raised(plan: ChannelPlan, guard: Guard) -> ChannelPlan:
    """`plan` with each layer's kept count raised to the guard's multiple, by score."""
    layers = []
    for layer in plan.layers:
        kept = guard.rounded(int(layer.keep.sum()), len(layer.keep))
        layers.append(replace(layer, keep=_filled(layer.keep, layer.score, kept)))
    return ChannelPlan(tuple(layers))


def _ranked(values: Values) -> npt.NDArray[np.intp]:
    """Indices by falling value, the earlier of equals first."""
    return np.argsort(-values, kind="stable")


def _filled(taken: Flags, values: Values, count: int) -> Flags:
    """`taken` and, up to `count` in all, the best of the others."""
    missing = max(0, count - int(taken.sum()))
    candidates = [int(i) for i in _ranked(values) if not taken[i]]
    filled = taken.copy()
    filled[candidates[:missing]] = True
    return filled


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
        single: Iterable[str] = ()
        if len(group.projections) == 1 and not group.merges:
            single = alone.intersection(graph.charged_by(group.projections[0]))
        elif group.whole is None and residual == "coupled" and group.projections:
            masks = tuple(graph.population_fed_by(name) or name for name in group.projections)
            found.append(PruningUnit(group.title, group.channels, masks, group.populations))
        elif group.whole is None and residual == "scatter":
            single = scatter_branches(graph, group)
        found += [PruningUnit(name, group.channels, (name,), (name,)) for name in single]
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
