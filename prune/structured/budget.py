"""Which channels stay within a budget of cost: the score per saved cost, decided purely.

After SPEAR, "Structured Pruning for Spiking Neural Networks via Synaptic Operation Estimation and
Reinforcement Learning" (arXiv 2507.02945), in that SynOps are the constraint; here the search is
greedy. The channel whose score is lowest for what it saves goes first. What it saves is its
marginal cost among those that are still open, so costs are computed anew as channels go.
"""

import math
from collections.abc import Mapping

import numpy as np

from soul_deploy.base.errors import SoulDeployError
from soul_deploy.prune.structured.costs import Costs, Keep
from soul_deploy.prune.structured.selection import ChannelPlan, Flags, Guard, LayerChannels, Values

ROUND = 0.02
"""Share of the open channels that go, or come back, before costs are computed anew."""
ByUnit = Mapping[str, Values]


def decide(
    scores: ByUnit, gradients: ByUnit, costs: Costs, wanted: float, regrow: float, guard: Guard
) -> ChannelPlan:
    """The plan that costs `wanted`, or as near as the guard's floors and whole channels allow.

    scores, gradients: (C,) by unit. From all channels the worst score for its saved cost goes,
    again and again, down to (1 - regrow) · wanted; then those with the largest |gradient| for their
    cost come back. Of equals the earlier layer and channel stays. Raises SoulDeployError for values
    that are not finite.
    """
    _require_finite(scores, gradients)
    slopes = {name: np.abs(values) for name, values in gradients.items()}
    kept = shrunk(costs.all_open(), scores, costs, (1 - regrow) * wanted, guard)
    return _plan(kept, grown(kept, slopes, costs, wanted), scores, slopes)


def correct(
    plan: ChannelPlan, scores: ByUnit, gradients: ByUnit, costs: Costs, wanted: float, guard: Guard
) -> ChannelPlan:
    """`plan` brought to `wanted` by costs measured since: the worst go, or the best come back."""
    _require_finite(scores, gradients)
    slopes = {name: np.abs(values) for name, values in gradients.items()}
    before = {layer.name: layer.keep for layer in plan.layers}
    kept = shrunk(before, scores, costs, wanted, guard)
    return _plan(kept, grown(kept, slopes, costs, wanted), scores, slopes)


def least(costs: Costs, guard: Guard) -> float:
    """What the floors alone cost."""
    even = {unit: np.zeros(width) for unit, width in costs.widths.items()}
    return costs.total(shrunk(costs.all_open(), even, costs, 0.0, guard))


def shrunk(
    keep: Keep, scores: ByUnit, costs: Costs, wanted: float, guard: Guard
) -> dict[str, Flags]:
    """`keep` without channels, until it costs `wanted` at most or floors alone are left.

    A channel that saves nothing stays.
    """
    flat = _Flat(costs)
    opened, score = flat.join(keep), flat.join(scores)
    excess = costs.total(keep) - wanted
    while excess > 0:
        saved = flat.join(costs.marginal(flat.split(opened)))
        spare = flat.spare(opened, guard)
        worth = np.full(len(score), math.inf)
        able = opened & (saved > 0)
        worth[able] = score[able] / saved[able]
        gone, left = 0, excess
        for i in np.lexsort((-np.arange(len(score)), worth)):
            unit = flat.unit[i]
            if not able[i] or gone >= flat.round(opened) or (gone and saved[i] > left):
                break  # the sum of what each saves is never less than what all save
            if spare[unit] > 0:
                opened[i] = False
                spare[unit] -= 1
                gone, left = gone + 1, left - saved[i]
        if not gone:
            break
        excess = costs.total(flat.split(opened)) - wanted
    return flat.split(opened)


def grown(keep: Keep, values: ByUnit, costs: Costs, wanted: float) -> dict[str, Flags]:
    """`keep` and the closed channels with the best value for their cost, as long as each brings
    the cost nearer to `wanted`.
    """
    flat = _Flat(costs)
    opened, value = flat.join(keep), flat.join(values)
    while True:
        lack = wanted - costs.total(flat.split(opened))
        added = flat.join(costs.marginal(flat.split(opened)))
        able = ~opened & (added > 0) & (np.abs(lack - added) < abs(lack))
        if not able.any():
            return flat.split(opened)
        worth = np.full(len(value), -math.inf)
        worth[able] = value[able] / added[able]
        come = 0
        for i in np.argsort(-worth, kind="stable")[: flat.round(opened)]:
            # Together they cost more than the sum of each: half of what lacks leaves room.
            if not able[i] or (come and added[i] > lack / 2):
                break
            opened[i] = True
            come, lack = come + 1, lack - added[i]


class _Flat:
    """All channels in a row, unit after unit."""

    def __init__(self, costs: Costs) -> None:
        self.widths = costs.widths
        self.unit = np.repeat(np.arange(len(self.widths)), [*self.widths.values()])
        self._cuts = np.cumsum([*self.widths.values()])[:-1]

    def join(self, by_unit: Mapping[str, Values] | Keep) -> Values | Flags:
        return np.concatenate([by_unit[name] for name in self.widths])

    def split(self, flat: Flags) -> dict[str, Flags]:
        return dict(zip(self.widths, np.split(flat.copy(), self._cuts), strict=True))

    def spare(self, opened: Flags, guard: Guard) -> Values:
        """How many open channels each unit has above its floor."""
        counts = np.bincount(self.unit[opened], minlength=len(self.widths))
        return counts - [guard.floor(width) for width in self.widths.values()]

    def round(self, opened: Flags) -> int:
        return max(1, math.ceil(ROUND * int(opened.sum())))


def _plan(kept: Keep, final: Keep, scores: ByUnit, slopes: ByUnit) -> ChannelPlan:
    """kept: by score; final: with those that came back."""
    return ChannelPlan(
        tuple(
            LayerChannels(name, keep, keep & ~kept[name], scores[name], slopes[name])
            for name, keep in final.items()
        )
    )


def _require_finite(scores: ByUnit, gradients: ByUnit) -> None:
    values = (*scores.values(), *gradients.values())
    if not all(np.isfinite(found).all() for found in values):
        raise SoulDeployError("scores or gradients are not finite; lower --learning_rate")
