"""Which channels stay within a budget of cost: the score per saved cost, decided purely.

After SPEAR, "Structured Pruning for Spiking Neural Networks via Synaptic Operation Estimation and
Reinforcement Learning" (arXiv 2507.02945), in that SynOps are the constraint; here the search is
greedy. The channel whose worth is lowest goes first: its share of the score that its unit still
holds, divided by the square root of what its removal saves. Shares make layers comparable whatever
the scale of their scores, and what is left of a layer is worth more the less there is (a greedy
rise of the sum of the logarithms of what units hold), so that none is emptied. What a removal saves
is the marginal cost among the channels that are still open: computed anew as channels go. Where
channels themselves are counted (`Costs.counted`), each costs 1, and its SynOps are its price. With
the rule "score" the score alone is the worth, as baselines have it, and the budget only says when
to stop.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from soul_deploy.base.errors import SoulDeployError
from soul_deploy.prune.structured.costs import Costs, Keep
from soul_deploy.prune.structured.selection import ChannelPlan, Flags, LayerChannels, Values

Rule = Literal["per_cost", "score"]
RULES: tuple[Rule, ...] = get_args(Rule)
POWER = 0.5
"""Of the cost by which worth is divided. With 1 only the dearest layers are pruned."""
PRICE_POWER = 0.2
"""The same where channels are counted, and what they cost is only their price. With 0.5 the cheap
layers behind the last pooling keep all they have, and the others starve (docs/methods.md)."""
LEAST_PRICE = 0.01
"""Of the mean price: what a channel pays at least. A silent one is no bargain."""
TINY = 1e-9
ROUND = 0.02
"""Share of the open channels that go, or come back, before costs are computed anew."""
ByUnit = Mapping[str, Values]
Floors = Mapping[str, int]
"""Unit -> how many channels it keeps at least."""


def decide(
    scores: ByUnit,
    gradients: ByUnit,
    costs: Costs,
    wanted: float,
    regrow: float,
    floors: Floors,
    rule: Rule = "per_cost",
) -> ChannelPlan:
    """The plan that costs `wanted`, or as near as the units' floors and whole channels allow.

    scores, gradients: (C,) by unit. From all channels the worst score for its saved cost goes,
    again and again, down to (1 - regrow) · wanted; then those with the largest |gradient| for their
    cost come back. Of equals the earlier layer and channel stays. Raises SoulDeployError for values
    that are not finite.
    """
    _require_finite(scores, gradients)
    slopes = {name: np.abs(values) for name, values in gradients.items()}
    kept = shrunk(costs.all_open(), scores, costs, (1 - regrow) * wanted, floors, rule)
    return _plan(kept, grown(kept, slopes, costs, wanted, rule), scores, slopes)


def correct(
    keep: Keep,
    scores: ByUnit,
    gradients: ByUnit,
    costs: Costs,
    wanted: float,
    floors: Floors,
    rule: Rule = "per_cost",
) -> ChannelPlan:
    """`keep` brought to `wanted` by costs measured since: the worst go, or the best come back."""
    _require_finite(scores, gradients)
    slopes = {name: np.abs(values) for name, values in gradients.items()}
    kept = shrunk(keep, scores, costs, wanted, floors, rule)
    return _plan(kept, grown(kept, slopes, costs, wanted, rule), scores, slopes)


def unchanged(keep: Keep, scores: ByUnit, gradients: ByUnit) -> ChannelPlan:
    """The plan that keeps what is open."""
    return _plan(keep, keep, scores, {name: np.abs(of) for name, of in gradients.items()})


def least(costs: Costs, floors: Floors) -> float:
    """What the floors alone cost."""
    even = {unit: np.zeros(width) for unit, width in costs.widths.items()}
    return costs.total(shrunk(costs.all_open(), even, costs, 0.0, floors))


def reserve(
    keep: Keep, gradients: ByUnit, costs: Costs, count: int, rule: Rule = "per_cost"
) -> dict[str, Flags]:
    """The `count` closed channels that would come back first."""
    flat = _Flat(costs, rule)
    opened, slopes = flat.flags(keep), np.abs(flat.values(gradients))
    worth = np.where(opened, -math.inf, flat.worth(slopes, opened))
    chosen = np.zeros(len(opened), np.bool_)
    chosen[np.argsort(-worth, kind="stable")[:count]] = True
    return flat.split(chosen & ~opened)


def shrunk(
    keep: Keep, scores: ByUnit, costs: Costs, wanted: float, floors: Floors, rule: Rule = "per_cost"
) -> dict[str, Flags]:
    """`keep` without channels, until it costs `wanted` at most or none can go that brings the cost
    nearer to it.

    A channel that saves nothing stays.
    """
    flat = _Flat(costs, rule)
    opened, score = flat.flags(keep), flat.values(scores)
    excess = costs.total(keep) - wanted
    while excess > 0:
        saved = flat.values(costs.marginal(flat.split(opened)))
        able = opened & (saved > 0) & (saved < 2 * excess)
        worth = np.where(able, flat.worth(score, opened), math.inf)
        order = np.lexsort((-np.arange(len(score)), worth))  # of equals the last goes first
        spare = flat.spare(opened, floors)
        gone = _first_that_fit(order[: int(able.sum())], saved, excess, flat.unit, spare)
        gone = gone[: flat.round(opened)]
        if not gone:
            break
        opened[gone] = False
        excess = costs.total(flat.split(opened)) - wanted
    return flat.split(opened)


def _first_that_fit(
    order: npt.NDArray[np.intp],
    saved: Values,
    excess: float,
    unit: npt.NDArray[np.intp],
    spare: npt.NDArray[np.int64],
) -> list[int]:
    """Channels that go together, in order: the first, and others while `excess` is not used up.

    The sum of what each saves is never less than what all save.
    """
    gone: list[int] = []
    for i in order.tolist():
        if gone and saved[i] > excess:
            break
        if spare[unit[i]] > 0:
            spare[unit[i]] -= 1
            excess -= saved[i]
            gone.append(i)
    return gone


def grown(
    keep: Keep, values: ByUnit, costs: Costs, wanted: float, rule: Rule = "per_cost"
) -> dict[str, Flags]:
    """`keep` and the closed channels with the best value for their cost, as long as each brings
    the cost nearer to `wanted`.
    """
    flat = _Flat(costs, rule)
    opened, value = flat.flags(keep), flat.values(values)
    while True:
        lack = wanted - costs.total(flat.split(opened))
        added = flat.values(costs.marginal(flat.split(opened)))
        able = ~opened & (added > 0) & (np.abs(lack - added) < abs(lack))
        if not able.any():
            return flat.split(opened)
        worth = np.where(able, flat.worth(value, opened), -math.inf)
        order = np.argsort(-worth, kind="stable")[: min(flat.round(opened), int(able.sum()))]
        come = 1  # Together they cost more than the sum of each: half of what lacks leaves room.
        while come < len(order) and added[order[: come + 1]].sum() < lack / 2:
            come += 1
        opened[order[:come]] = True


class _Flat:
    """All channels in a row, unit after unit."""

    def __init__(self, costs: Costs, rule: Rule) -> None:
        self.widths, self.rule, self._prices = costs.widths, rule, costs.prices or costs
        counted = costs.prices is not None
        self._power, self._least = (PRICE_POWER, LEAST_PRICE) if counted else (POWER, 0.0)
        self.unit = np.repeat(np.arange(len(self.widths)), [*self.widths.values()])
        self._cuts = np.cumsum([*self.widths.values()])[:-1]

    def values(self, by_unit: ByUnit) -> Values:
        return np.concatenate([by_unit[name] for name in self.widths])

    def flags(self, by_unit: Keep) -> Flags:
        return np.concatenate([by_unit[name] for name in self.widths])

    def split(self, flat: Flags) -> dict[str, Flags]:
        return dict(zip(self.widths, np.split(flat.copy(), self._cuts), strict=True))

    def spare(self, opened: Flags, floors: Floors) -> npt.NDArray[np.int64]:
        """How many open channels each unit has above its floor."""
        counts = np.bincount(self.unit[opened], minlength=len(self.widths))
        return counts - np.array([floors[unit] for unit in self.widths], np.int64)

    def worth(self, values: Values, opened: Flags) -> Values:
        """By the rule: see the module's text."""
        if self.rule == "score":
            return values
        costs = self.values(self._prices.marginal(self.split(opened)))
        costs = np.maximum(costs, max(TINY, self._least * float(costs.mean())))
        held = np.bincount(self.unit[opened], values[opened], len(self.widths))[self.unit]
        share = np.divide(values, held, out=np.ones(len(values)), where=held > 0)
        return share / costs**self._power

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
