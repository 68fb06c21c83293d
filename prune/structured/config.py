"""What SCA prunes: when masks change, what is measured, what every layer keeps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from soul_deploy.base.errors import UsageError, require_known
from soul_deploy.ir import SpikingGraph
from soul_deploy.prune.channel_groups import RESIDUAL, Residual
from soul_deploy.prune.ramp import RAMPS, RISE, Ramp
from soul_deploy.prune.structured import budget, scores, selection
from soul_deploy.prune.target import Target


@dataclass(frozen=True)
class PruneSchedule:
    """The pruning loop's epochs, counted from 1.

    ratio            p, the pruned fraction of all prunable channels at the end; with a target
                     it is not used
    regrow_ratio     q, the fraction of channels chosen by gradient at each update; p + q < 1;
                     with a target, the fraction of the cost
    epochs           length of the loop, the frozen epochs included
    finetune_epochs  epochs at the end in which the masks stay as they are
    interval         epochs from one mask update to the next
    warmup           epochs before the first interval begins
    ramp             constant: p from the first update on; linear, cubic: rising to p; the cost
                     of a target falls alike
    """

    ratio: float = 0.1
    regrow_ratio: float = 0.1
    epochs: int = 50
    finetune_epochs: int = 0
    interval: int = 1
    warmup: int = 0
    ramp: Ramp = "constant"

    def __post_init__(self) -> None:
        p, q = self.ratio, self.regrow_ratio
        if not (p >= 0 and q >= 0 and p + q < 1):
            raise UsageError(
                f"prune_ratio {p:g} and regrow_ratio {q:g}: neither may be negative, and their "
                "sum must be below 1"
            )
        require_known("prune_ramp", self.ramp, RAMPS)
        if self.interval < 1 or self.warmup < 0 or self.finetune_epochs < 0:
            raise UsageError(
                f"prune_interval {self.interval} must be at least 1, prune_warmup {self.warmup} "
                f"and finetune_epochs {self.finetune_epochs} at least 0"
            )
        if not self.rise_after:
            raise UsageError(
                f"no mask update fits into prune_epochs {self.epochs}: the first comes after "
                f"prune_warmup + prune_interval = {self.warmup + self.interval} epochs, and "
                f"finetune_epochs {self.finetune_epochs} follow the last"
            )

    @cached_property
    def ratio_after(self) -> Mapping[int, float]:
        """Pruned fraction set by the update after each epoch that has one, in order."""
        return {epoch: self.ratio * rise for epoch, rise in self.rise_after.items()}

    @cached_property
    def rise_after(self) -> Mapping[int, float]:
        """How much of the way to the end each update has gone, from 0 to 1, by its epoch."""
        last = self.epochs - self.finetune_epochs
        at = range(self.warmup + self.interval, last + 1, self.interval)
        rise = RISE[self.ramp]
        return {epoch: rise((k + 1) / len(at)) for k, epoch in enumerate(at)}

    @property
    def last_update(self) -> int:
        """The epoch after which the masks are final."""
        return max(self.rise_after)


RegrowWeights = Literal["retain", "zero"]
REGROW_WEIGHTS: tuple[RegrowWeights, ...] = ("retain", "zero")
NAMED = (
    *("score", "score_window", "regrow_window", "regrow_weights", "residual", "kept_count"),
    "budget_rule",
)
"""Fields of ScaConfig that are one of some names."""


@dataclass(frozen=True)
class ScaConfig:
    """SCA: what is measured, when masks change, what every layer keeps.

    regrow_weights  "retain": a regrown channel goes on with its old weights; "zero": its incoming
                    weights start from 0 (its batch norm stays, so that it can learn)
    residual        what is pruned of residual streams: "internal", nothing; "coupled", channels of
                    all members at once; "scatter", branches one by one
    target          what the pruned network is to cost, instead of the schedule's ratio
    budget_rule     by what channels go: "per_cost", share of the layer's score by what is saved,
                    of a target's cost or, to the schedule's ratio, of SynOps; "score", the lowest
                    scores of all layers, whatever they save
    kept_count      how (1 - p) N becomes a number of channels: "round"; "floor" (Soul, the authors)
    widths          population -> channels that the guard's share is of, if the network was narrowed
                    before; None: those that it has
    """

    schedule: PruneSchedule = field(default_factory=PruneSchedule)
    guard: selection.Guard = field(default_factory=selection.Guard)
    score: scores.Score = "spike_membrane"
    score_window: scores.Window = "epoch"
    regrow_window: scores.Window = "epoch"
    regrow_weights: RegrowWeights = "retain"
    residual: Residual = "internal"
    kept_count: selection.KeptCount = "floor"
    target: Target | None = None
    budget_rule: budget.Rule = "per_cost"
    widths: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        windows = scores.WINDOWS, scores.WINDOWS
        counted = selection.KEPT_COUNT, budget.RULES
        valid = (scores.SCORES, *windows, REGROW_WEIGHTS, RESIDUAL, *counted)
        for name, choices in zip(NAMED, valid, strict=True):
            require_known(name, getattr(self, name), choices)
        if self.target is not None and self.guard.round_to > 1:
            raise UsageError(
                f"round_to {self.guard.round_to} with {self.target}: counts in multiples cannot "
                "follow a cost; give one of the two"
            )

    @property
    def removed_streams(self) -> Residual:
        """What removal takes from residual streams: of single branches only if that was asked for.

        Streams lose what is dead in all members anyway.
        """
        return "scatter" if self.residual == "scatter" else "coupled"

    def units(
        self, graph: SpikingGraph, names: Collection[str]
    ) -> tuple[selection.PruningUnit, ...]:
        """What is decided about when the populations `names` are pruned."""
        return selection.pruning_units(graph, self.residual, names)

    def floors(self, units: Sequence[selection.PruningUnit]) -> dict[str, int]:
        """How many channels each unit keeps at least."""
        widths = self.widths or {}
        floors = {u.name: self.guard.floor(widths.get(u.populations[0], u.channels)) for u in units}
        return {unit.name: min(floors[unit.name], unit.channels) for unit in units}

    def budget(self, channels: int, ratio: float) -> selection.Budget:
        """How many of `channels` stay when `ratio` of them is pruned."""
        return selection.Budget.of(channels, ratio, self.schedule.regrow_ratio, self.kept_count)
