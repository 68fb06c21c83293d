"""By what channels are ranked: each score's name, and how it is measured.

Every score says "the higher, the rather it stays". Scores of a unit's members are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from soul_deploy.base import brief, errors
from soul_deploy.ir import SpikingGraph
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.metering import Meter
from soul_deploy.prune.structured.scores import ChannelStatistics, Score
from soul_deploy.prune.structured.selection import PruningUnit, Values

ByUnit = dict[str, Values]
"""Unit -> (C,)."""


@brief
@dataclass(frozen=True)
class Ranked:
    """What scores are measured from.

    statistics  what training batches gave since the last update of the masks
    synops      measures what channels cause; None unless the score needs it
    seed        of the random ranks: the same ones whenever they are asked for
    """

    module: GraphModule
    units: Sequence[PruningUnit]
    statistics: ChannelStatistics
    synops: Meter | None
    seed: int

    def of_rows(self, values: Callable[[str], Values]) -> ByUnit:
        """The mean over each unit's projections of (C,) values by projection."""
        row = self.module.graph.masked_projection
        return {
            u.name: np.mean([values(row(mask)) for mask in u.masks], axis=0) for u in self.units
        }


def scores_of(score: Score, ranked: Ranked) -> ByUnit:
    """The scores (C,) of each unit."""
    return MEASURED[score](ranked)


def check_score(score: Score, graph: SpikingGraph, units: Sequence[PruningUnit]) -> None:
    """Raise UsageError if the score needs what a unit lacks."""
    if score != "bn_gamma":
        return
    rows = [graph.projection(graph.masked_projection(m)) for u in units for m in u.masks]
    lacking = [node.name for node in rows if node.norm is None]
    if lacking:
        raise errors.UsageError(
            f"score bn_gamma ranks by batch norm's gamma, and {', '.join(lacking)} has no batch "
            "norm; leave these layers out, or take another score"
        )


def _activity(ranked: Ranked) -> ByUnit:
    """The mean over time, batch and space of spikes, of |membrane potential|, or of their sum.

    SCA (Li et al., ICML 2024): see `scores.ChannelStatistics`.
    """
    found = ranked.statistics.scores()
    return {u.name: np.mean([found[p] for p in u.populations], axis=0) for u in ranked.units}


def _random(ranked: Ranked) -> ByUnit:
    """A rank from 0 to 1, drawn once per seed.

    The same ranks at each update: ranks drawn anew would close what was trained since the last one,
    and a gradual baseline would be worse than random channels are.
    """
    bounds = np.cumsum([0, *(unit.channels for unit in ranked.units)])
    ranks = np.random.default_rng(ranked.seed).permutation(bounds[-1]) / max(1, bounds[-1])
    parts = np.split(ranks, bounds[1:-1])
    return {unit.name: part for unit, part in zip(ranked.units, parts, strict=True)}


def _l1(ranked: Ranked) -> ByUnit:
    """The mean |weight| of a channel's incoming weights, relative to the mean over its layer.

    Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), ranks sums within a layer.
    Over all layers at once sums would favour those with many inputs, and plain means those with
    few (their weights start larger), whatever they are worth.
    """

    def of(projection: str) -> Values:
        weight = ranked.module.get_submodule(projection).get_parameter("weight").detach()
        means: Values = weight.abs().double().flatten(1).mean(1).cpu().numpy()
        layer = means.mean()
        return means / layer if layer > 0 else means

    return ranked.of_rows(of)


def _bn_gamma(ranked: Ranked) -> ByUnit:
    """|gamma| of the channel's batch norm, over all layers at once.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017).
    """
    graph = ranked.module.graph

    def of(projection: str) -> Values:
        norm = graph.projection(projection).norm
        assert norm is not None, projection
        gamma = ranked.module.get_submodule(norm.name).get_parameter("weight").detach()
        return np.asarray(gamma.abs().double().cpu().numpy())

    return ranked.of_rows(of)


def _synops(ranked: Ranked) -> ByUnit:
    """SynOps that a channel causes downstream per validation sample: the busiest stay.

    Spikes delivered times live fan-out. A baseline of activity, weighed by what it reaches; against
    a budget of SynOps, where busy channels pay, the opposite is what the cost does.
    """
    assert ranked.synops is not None
    reading = ranked.synops.measure()
    caused = reading.costs.outgoing(ranked.synops.keep)
    return {name: values / reading.samples for name, values in caused.items()}


MEASURED: Mapping[Score, Callable[[Ranked], ByUnit]] = MappingProxyType(
    {
        "spike_membrane": _activity,
        "spike": _activity,
        "membrane": _activity,
        "random": _random,
        "l1": _l1,
        "bn_gamma": _bn_gamma,
        "synops": _synops,
    }
)
"""Score -> how it is measured; higher ones stay."""
