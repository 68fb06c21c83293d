"""What pruning decides from, and its decisions: the channels of a module under its masks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim import Optimizer

from soul_deploy.base import Array, brief, errors
from soul_deploy.data import datasets
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured import budget, masks, metering, ranking, scores, selection
from soul_deploy.prune.structured.config import ScaConfig
from soul_deploy.prune.target import TOLERANCE, UNITS, Quantity, Spent, Target
from soul_deploy.training.state import Bundle, Restorable, Tree, number_of

CLOSE = 0.01
"""Masks are corrected until the measured cost is as near to the target, relative to it."""
ROUNDS = 6
"""Corrections in a row at most; each moves the rates of what is left a little."""
RESERVE = 0.05
"""Closed channels that stay for corrections, relative to the open ones."""


def check(module: GraphModule, sca: ScaConfig, names: Sequence[str]) -> None:
    """Raise before any training what can be known then.

    UsageError: a score without its measure, floors above the channels that may stay, a target that
    the network is below already. TargetError: a target below what the floors cost, if that follows
    from the structure.
    """
    units = sca.units(module.graph, names)
    ranking.check_score(sca.score, module.graph, units)
    widths = {unit.name: unit.channels for unit in units}
    if sca.target is None:
        wanted = sca.budget(sum(widths.values()), sca.schedule.ratio)
        selection.check_budget(wanted, widths, sca.guard)
    elif sca.target.quantity != "synops":
        meter = metering.Meter(module, None, units, sca.target.quantity, sca.removed_streams)
        reading = meter.measure()
        dense = reading.dense or reading.cost
        _require_above(sca.target, reading.cost, dense)
        least = budget.least(reading.costs, sca.floors(units))
        if least > (1 + TOLERANCE) * sca.target.amount(dense):
            raise unmet(Spent(sca.target, dense, least), sca.guard)


def unmet(spent: Spent, guard: selection.Guard) -> errors.TargetError:
    """The error for a target that is not met; the cost is that of the nearest."""
    return errors.TargetError(
        f"{spent.target} cannot be met: the nearest is {spent}, with min_channels "
        f"{guard.min_channels} and min_keep {guard.min_keep:g} for every layer that is pruned; "
        "lower them, prune more layers, or change the target"
    )


def _require_above(target: Target, cost: float, dense: float) -> None:
    if target.amount(dense) >= cost:
        rule = "give less" if cost else "train it, until its neurons spike"
        raise errors.UsageError(
            f"{target}: the network has {cost:,.0f} {UNITS[target.quantity]} before pruning; {rule}"
        )


@brief
@dataclass(frozen=True)
class CostPlan:
    """What a plan is expected to cost. layers: (projection, cost of all channels, planned)."""

    spent: Spent
    layers: tuple[tuple[str, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; share: of the planned cost."""
        total = sum(planned for _, _, planned in self.layers)
        rows = [
            {"name": name, "dense": dense, "planned": planned, "share": planned / (total or 1.0)}
            for name, dense, planned in self.layers
        ]
        told = self.spent.to_dict()
        return {**told, "planned": told.pop("cost"), "layers": rows}


class DenseCosts:
    """What the network cost before pruning: SynOps, and others. Measured once in a run."""

    def __init__(self, *others: Quantity) -> None:
        self.quantities: tuple[Quantity, ...] = ("synops", *others)
        self.values: dict[str, float] = {}

    def state(self) -> Tree:
        return dict(self.values)

    def restore(self, tree: Tree) -> None:
        self.values = {name: number_of(tree, name) for name in self.quantities if name in tree}


class Measurement:
    """The pruning units of a module, with open masks and fresh statistics.

    floors: how many channels each unit keeps. ranks: random ones, by unit. dense: costs before
    pruning, which a measurement of the narrowed network shares. cost: what the target's quantity
    was when it was last measured.
    """

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data,
        sca: ScaConfig,
        units: Sequence[selection.PruningUnit],
        floors: budget.Floors,
        ranks: ranking.ByUnit,
        dense: DenseCosts,
    ) -> None:
        self.module, self.data, self.sca, self.units = module, data, sca, units
        self.floors, self.ranks, self.dense = floors, ranks, dense
        self.cost = 0.0
        names = [mask for unit in units for mask in unit.masks]
        masks.open_masks(module, names)
        graph = module.graph
        measured = {n: graph.shapes[n][0] for unit in units for n in unit.populations}
        channels = {name: selection.channels_of(graph, name) for name in names}
        windows = sca.score_window, sca.regrow_window
        self.statistics = scores.ChannelStatistics(measured, sca.score, *windows, channels)
        counts = sca.score == "synops" or (sca.target is None and sca.budget_rule == "per_cost")
        needed = dense.quantities[1:] + (dense.quantities[:1] if counts else ())
        self.meters = {name: self._meter(name) for name in needed}

    @staticmethod
    def of(
        module: GraphModule, data: datasets.Data, seed: int, sca: ScaConfig, names: Sequence[str]
    ) -> "Measurement":
        """Of the populations `names` of a whole network. Raises as `check`."""
        check(module, sca, names)
        units = sca.units(module.graph, names)
        floors = sca.floors(units)
        ranks = ranking.random_ranks(units, seed)
        dense = DenseCosts(*(() if sca.target is None else (sca.target.quantity,)))
        return Measurement(module, data, sca, units, floors, ranks, dense)

    def narrowed(self, module: GraphModule, channels: Mapping[str, Array]) -> "Measurement":
        """Of what is left of the network. channels: mask -> which of the whole network's."""
        left = {unit.name: channels[unit.masks[0]] for unit in self.units}
        units = [replace(unit, channels=len(left[unit.name])) for unit in self.units]
        ranks = {name: self.ranks[name][index] for name, index in left.items()}
        parts = self.data, self.sca, units, self.floors, ranks, self.dense
        made = Measurement(module, *parts)
        for name, meter in made.meters.items():
            meter.start_from(self.meters[name], channels)
        made.cost = self.cost
        return made

    @property
    def parts(self) -> Mapping[str, Restorable]:
        """What a run that goes on needs of it, by name."""
        meters: dict[str, Restorable] = {str(n): meter for n, meter in self.meters.items()}
        return {"statistics": self.statistics, "meters": Bundle(meters), "dense": self.dense}

    def _meter(self, quantity: Quantity) -> metering.Meter:
        streams = self.sca.removed_streams
        return metering.Meter(self.module, self.data, self.units, quantity, streams)

    def begin(self) -> None:
        """Measure what the network costs before pruning, unless that is known.

        Raises UsageError if the target is not below it.
        """
        for quantity in self.dense.quantities:
            if quantity not in self.dense.values:
                meter = self.meters.get(quantity) or self._meter(quantity)
                reading = meter.measure()
                self.dense.values[quantity] = float(reading.dense or reading.cost)
                if self.sca.target is not None and self.sca.target.quantity == quantity:
                    _require_above(self.sca.target, reading.cost, self.dense.values[quantity])

    def synops(self) -> tuple[float, float]:
        """SynOps per sample before pruning and now."""
        return self.dense.values["synops"], self._meter("synops").measure().cost

    def spent(self) -> Spent | None:
        """What the target's quantity is now, measured; None without a target."""
        target = self.sca.target
        if target is None:
            return None
        self.cost = self.meters[target.quantity].measure().cost
        return Spent(target, self.dense.values[target.quantity], self.cost)

    def decide(self, rise: float) -> selection.ChannelPlan:
        """Which channels stay when `rise` (0 to 1) of the way to the end is gone."""
        target, schedule = self.sca.target, self.sca.schedule
        if target is None:
            return self._share(schedule.ratio * rise)
        reading = self.meters[target.quantity].measure()
        dense = self.dense.values[target.quantity]
        cost = (dense - rise * (dense - target.amount(dense))) * reading.samples
        values = self.scores(), self.gradients()
        limits = schedule.regrow_ratio, self.floors
        plan = budget.decide(*values, reading.costs, cost, *limits, rule=self.sca.budget_rule)
        kept = {layer.name: layer.keep for layer in plan.layers}
        self.cost = reading.costs.total(kept) / reading.samples  # as planned; `settle` measures
        return plan

    def _share(self, ratio: float) -> selection.ChannelPlan:
        """Which channels stay when a share of all goes."""
        wanted = self.sca.budget(sum(unit.channels for unit in self.units), ratio)
        values = self.scores(), self.gradients()
        if self.sca.budget_rule == "score":
            return selection.decide(*values, wanted, self.sca.guard)
        costs = self.meters["synops"].measure().costs.counted()
        regrown = wanted.regrown / max(1, wanted.kept)
        plan = budget.decide(*values, costs, wanted.kept, regrown, self.floors)
        return selection.raised(plan, self.sca.guard)

    def planned(self, plan: selection.ChannelPlan) -> CostPlan | None:
        """What a plan leaves of the target's quantity, by what is measured now; None without one.

        Closed channels change what the others fire, so the network is measured again when it is
        pruned.
        """
        target = self.sca.target
        if target is None:
            return None
        reading, dense = self.meters[target.quantity].measure(), self.dense.values[target.quantity]
        keep, costs = {layer.name: layer.keep for layer in plan.layers}, reading.costs
        before, after = costs.by_part(costs.all_open()), costs.by_part(keep)
        layers = tuple(
            (name, cost / reading.samples, after[name] / reading.samples)
            for name, cost in before.items()
        )
        return CostPlan(Spent(target, dense, costs.total(keep) / reading.samples), layers)

    def settle(self, optimizer: Optimizer) -> selection.ChannelPlan | None:
        """Correct the masks until the measured cost is that of the target, as near as may be.

        Returns the new plan, or None if the masks stay.
        """
        target = self.sca.target
        if target is None:
            return None
        meter, values = self.meters[target.quantity], (self.scores(), self.gradients())
        wanted = target.amount(self.dense.values[target.quantity])
        start = plan = budget.unchanged(meter.keep, *values)
        tried: list[tuple[float, float, selection.ChannelPlan]] = []
        while len(tried) <= ROUNDS:
            reading = meter.measure()
            tried.append((abs(reading.cost - wanted), reading.cost, plan))
            limits, rule = (wanted * reading.samples, self.floors), self.sca.budget_rule
            better = budget.correct(meter.keep, *values, reading.costs, *limits, rule=rule)
            if tried[-1][0] <= CLOSE * wanted or better.keeps_as(plan):
                break
            plan = better
            self.apply(plan, optimizer)
        _, self.cost, nearest = min(tried, key=lambda trial: trial[0])
        if nearest is not plan:
            self.apply(nearest, optimizer)
        return None if nearest.keeps_as(start) else nearest

    def reserve(self) -> dict[str, selection.Flags]:
        """Closed channels that corrections may open again, by mask: those with the best gradient
        for their cost. None without a target.
        """
        target = self.sca.target
        if target is None:
            return {}
        meter = self.meters[target.quantity]
        keep, costs = meter.keep, meter.measure().costs
        count = math.ceil(RESERVE * sum(int(flags.sum()) for flags in keep.values()))
        chosen = budget.reserve(keep, self.gradients(), costs, count, self.sca.budget_rule)
        return {mask: chosen[unit.name] for unit in self.units for mask in unit.masks}

    def apply(self, plan: selection.ChannelPlan, optimizer: Optimizer) -> None:
        """Set the masks of all units as `plan` has them."""
        of = {unit.name: unit.masks for unit in self.units}
        layers = [replace(layer, name=mask) for layer in plan.layers for mask in of[layer.name]]
        masks.apply(layers, self.module, optimizer, self.sca.regrow_weights)

    def scores(self) -> ranking.ByUnit:
        """The scores (C,) by unit."""
        synops = self.meters.get("synops")
        parts = self.module, self.units, self.statistics, synops, self.ranks
        return ranking.scores_of(self.sca.score, ranking.Ranked(*parts))

    def gradients(self) -> ranking.ByUnit:
        """The regrowth gradients (C,) by unit."""
        slope = self.statistics.gradients()
        return {u.name: np.mean([slope[mask] for mask in u.masks], axis=0) for u in self.units}
