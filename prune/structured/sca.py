"""The pruning loop of SCA: train, score, mask, regrow, fine-tune with frozen masks.

A mask multiplies the batch norm's output, so a masked channel gives no current while its weights
stay; it can come back. See `soul_deploy.prune.structured.selection` for the rule and its source.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_deploy import distributed
from soul_deploy.base import brief
from soul_deploy.base.errors import UsageError, require_known
from soul_deploy.data import datasets, sampler
from soul_deploy.ir import SpikingGraph
from soul_deploy.nn.graph_module import ChannelMask, GraphModule
from soul_deploy.prune import target
from soul_deploy.prune.channel_groups import RESIDUAL, Residual
from soul_deploy.prune.structured import metering, ranking, scores, selection
from soul_deploy.training import trainer
from soul_deploy.training.state import Bundle, Restorable

Ramp = Literal["constant", "linear", "cubic"]
RAMPS: tuple[Ramp, ...] = ("constant", "linear", "cubic")


@dataclass(frozen=True)
class PruneSchedule:
    """The pruning loop's epochs, counted from 1.

    ratio            p, the pruned fraction of all prunable channels at the end
    regrow_ratio     q, the fraction of channels chosen by gradient at each update; p + q < 1
    epochs           length of the loop, the frozen epochs included
    finetune_epochs  epochs at the end in which the masks stay as they are
    interval         epochs from one mask update to the next
    warmup           epochs before the first interval begins
    ramp             constant: p from the first update on; linear, cubic: rising to p
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
        if not self.ratio_after:
            raise UsageError(
                f"no mask update fits into prune_epochs {self.epochs}: the first comes after "
                f"prune_warmup + prune_interval = {self.warmup + self.interval} epochs, and "
                f"finetune_epochs {self.finetune_epochs} follow the last"
            )

    @cached_property
    def ratio_after(self) -> Mapping[int, float]:
        """Pruned fraction set by the update after each epoch that has one, in order.

        The cubic ramp is that of Zhu and Gupta, "To prune, or not to prune" (2017), from 0 to p.
        """
        last = self.epochs - self.finetune_epochs
        at = range(self.warmup + self.interval, last + 1, self.interval)
        done = {epoch: (k + 1) / len(at) for k, epoch in enumerate(at)}
        power = {"constant": math.inf, "linear": 1, "cubic": 3}[self.ramp]
        return {epoch: self.ratio * (1 - (1 - x) ** power) for epoch, x in done.items()}

    @property
    def last_update(self) -> int:
        """The epoch after which the masks are final."""
        return max(self.ratio_after)


RegrowWeights = Literal["retain", "zero"]
REGROW_WEIGHTS: tuple[RegrowWeights, ...] = ("retain", "zero")
NAMED = ("score", "score_window", "regrow_window", "regrow_weights", "residual", "kept_count")
"""Fields of ScaConfig that are one of some names."""


@dataclass(frozen=True)
class ScaConfig:
    """SCA: what is measured, when masks change, what every layer keeps.

    regrow_weights  "retain": a regrown channel goes on with its old weights; "zero": its incoming
                    weights start from 0 (its batch norm stays, so that it can learn)
    residual        what is pruned of residual streams: "internal", nothing; "coupled", channels of
                    all members at once; "scatter", branches one by one
    kept_count      how (1 - p) N becomes a number of channels: "round"; "floor" (Soul, the authors)
    """

    schedule: PruneSchedule = field(default_factory=PruneSchedule)
    guard: selection.Guard = field(default_factory=selection.Guard)
    score: scores.Score = "spike_membrane"
    score_window: scores.Window = "epoch"
    regrow_window: scores.Window = "epoch"
    regrow_weights: RegrowWeights = "retain"
    residual: Residual = "internal"
    kept_count: selection.KeptCount = "round"

    def __post_init__(self) -> None:
        windows = scores.WINDOWS, scores.WINDOWS
        valid = (scores.SCORES, *windows, REGROW_WEIGHTS, RESIDUAL, selection.KEPT_COUNT)
        for name, choices in zip(NAMED, valid, strict=True):
            require_known(name, getattr(self, name), choices)

    @property
    def removal(self) -> Residual:
        """What goes from residual streams at removal.

        They lose what is dead in all members anyway; single branches only if asked for.
        """
        return "scatter" if self.residual == "scatter" else "coupled"

    def units(
        self, graph: SpikingGraph, names: Collection[str]
    ) -> tuple[selection.PruningUnit, ...]:
        """What is decided about when the populations `names` are pruned."""
        return selection.pruning_units(graph, self.residual, names)

    def budget(self, channels: int, ratio: float) -> selection.Budget:
        """How many of `channels` stay when `ratio` of them is pruned."""
        return selection.Budget.of(channels, ratio, self.schedule.regrow_ratio, self.kept_count)


@brief
@dataclass(frozen=True)
class PruneStep:
    """One epoch of the loop. `plan`: the masks set after it, or None."""

    result: trainer.EpochResult
    plan: selection.ChannelPlan | None


def check(module: GraphModule, sca: ScaConfig, names: Sequence[str]) -> None:
    """Raise UsageError before any training: a budget out of reach, a score without its measure."""
    units = sca.units(module.graph, names)
    ranking.check_score(sca.score, module.graph, units)
    widths = {unit.name: unit.channels for unit in units}
    selection.check_budget(sca.budget(sum(widths.values()), sca.schedule.ratio), widths, sca.guard)


class ChannelPruning(Bundle):
    """The loop over the populations `names` of a module, which is pruned in place.

    Its `state` between two steps is all that is needed to go on. Raises UsageError before any
    training if the budget cannot be met.
    """

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data,
        recipe: trainer.TrainConfig,
        sca: ScaConfig,
        names: Sequence[str],
        tick: trainer.Tick | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        self.sca = sca
        self._measurement = _Measurement(module, data, recipe.seed, sca, names)
        self._statistics = self._measurement.statistics
        self._best = trainer.BestState()
        self._training = trainer.Training(
            *(module, data, replace(recipe, epochs=sca.schedule.epochs)),
            hooks=self._statistics,
            tick=tick,
            after_step=after_step,
        )
        training, best = self._training, self._best
        super().__init__({"training": training, "best": best, **self._measurement.parts})

    def run(self) -> Iterator[PruneStep]:
        """Go on, yielding after each epoch.

        It ends with the weights of the epoch with the best validation accuracy among those with the
        final masks; the state right after the last mask update is one of them.
        """
        module, data, schedule = self._training.module, self._training.data, self.sca.schedule
        for result in self._training.run():
            ratio, best = schedule.ratio_after.get(result.epoch), result
            plan = None if ratio is None else self._update(ratio)
            if result.epoch == schedule.last_update:
                masked = trainer.accuracy(module, data, data.validation)
                best = replace(result, validation_accuracy=masked)
            if result.epoch >= schedule.last_update:
                self._best.offer(module, best)
            yield PruneStep(result, plan)
        self._best.take(module)

    def _update(self, ratio: float) -> selection.ChannelPlan:
        """Set the masks that what was measured gives, and begin to measure anew."""
        plan, training = self._measurement.decide(ratio), self._training
        masks = {unit.name: unit.masks for unit in self._measurement.units}
        layers = [replace(item, name=mask) for item in plan.layers for mask in masks[item.name]]
        apply(layers, training.module, training.optimizer, self.sca.regrow_weights)
        self._statistics.reset()
        distributed.assert_ranks_agree("after the new masks", training.module, [ratio])
        return plan


def plan_of_weights(
    module: GraphModule,
    data: datasets.Data,
    recipe: trainer.TrainConfig,
    sca: ScaConfig,
    names: Sequence[str],
) -> selection.ChannelPlan:
    """The final plan that the present weights would give, measured over one epoch without learning.

    Batch norm's running statistics move; use a module of its own.
    """
    measurement = _Measurement(module, data, recipe.seed, sca, names)
    trainer.begin_training(module, recipe)
    objective = recipe.objective.decided(module.graph)
    for index in torch.split(torch.arange(len(data.train)), recipe.batch_size):
        module.zero_grad()
        share = sampler.share_of(data.train.select(index), distributed.current())
        trainer.backward(module, data, share, measurement.statistics, objective)
    return measurement.decide(sca.schedule.ratio)


class _Measurement:
    """The units of a module, with open masks and fresh statistics. Raises as `check`."""

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data,
        seed: int,
        sca: ScaConfig,
        names: Sequence[str],
    ) -> None:
        check(module, sca, names)
        self.module, self.data, self.seed, self.sca = module, data, seed, sca
        self.units = sca.units(module.graph, names)
        masks = [mask for unit in self.units for mask in unit.masks]
        open_masks(module, masks)
        graph = module.graph
        measured = {n: graph.shapes[n][0] for unit in self.units for n in unit.populations}
        channels = {name: selection.channels_of(graph, name) for name in masks}
        windows = sca.score_window, sca.regrow_window
        self.statistics = scores.ChannelStatistics(measured, sca.score, *windows, channels)
        self.synops = self._meter("synops") if sca.score == "synops" else None

    @property
    def parts(self) -> Mapping[str, Restorable]:
        """What a run that goes on needs of it, by name."""
        meters = {"synops": self.synops} if self.synops else {}
        return {"statistics": self.statistics, **meters}

    def _meter(self, quantity: target.Quantity) -> metering.Meter:
        return metering.Meter(self.module, self.data, self.units, quantity, self.sca.removal)

    def decide(self, ratio: float) -> selection.ChannelPlan:
        """Which channels of the units stay when `ratio` of all is pruned."""
        budget = self.sca.budget(sum(u.channels for u in self.units), ratio)
        return selection.decide(self._scores(), self._gradients(), budget, self.sca.guard)

    def _scores(self) -> dict[str, selection.Values]:
        ranked = ranking.Ranked(self.module, self.units, self.statistics, self.synops, self.seed)
        return ranking.scores_of(self.sca.score, ranked)

    def _gradients(self) -> dict[str, selection.Values]:
        slope = self.statistics.gradients()
        return {u.name: np.mean([slope[mask] for mask in u.masks], axis=0) for u in self.units}


def open_masks(module: GraphModule, names: Iterable[str]) -> None:
    """Give each of `names` a mask that keeps everything, unless it has one."""
    device = next(module.parameters()).device
    for name in names:
        if name not in module.channel_masks:
            keep = torch.ones(selection.channels_of(module.graph, name), device=device)
            module.channel_masks[name] = ChannelMask(keep)


@torch.no_grad()
def apply(
    layers: Iterable[selection.LayerChannels],
    module: GraphModule,
    optimizer: Optimizer,
    regrow_weights: RegrowWeights,
) -> None:
    """Set the masks that `layers` are named after; clear the optimizer's memory of masked rows."""
    for layer in layers:
        mask = module.channel_masks[layer.name]
        keep = torch.from_numpy(layer.keep).to(mask.keep.device)
        back = keep & (mask.keep == 0)
        mask.keep = keep.to(mask.keep.dtype)
        projection = module.graph.projection(module.graph.masked_projection(layer.name))
        owners = [projection.name] + ([projection.norm.name] if projection.norm else [])
        # One row per channel: the projection's weight first, bias, batch norm.
        parameters = [p for owner in owners for p in module.get_submodule(owner).parameters()]
        for parameter in parameters:
            for value in optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[~keep] = 0
        if regrow_weights == "zero":
            parameters[0][back] = 0
