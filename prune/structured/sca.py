"""The pruning loop of SCA: train, score, mask, regrow, fine-tune with frozen masks.

A mask multiplies the batch norm's output, so a masked channel gives no current while its weights
stay; it can come back. See `soul_deploy.prune.structured.selection` for the rule and its source,
and `budget` for the one with a target.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from soul_deploy import distributed
from soul_deploy.base import brief, errors
from soul_deploy.data import datasets, sampler
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured import frozen, selection
from soul_deploy.prune.structured.config import ScaConfig
from soul_deploy.prune.structured.correction import TargetCorrection
from soul_deploy.prune.structured.measurement import Measurement
from soul_deploy.training import trainer
from soul_deploy.training.state import Bundle, Tree, tree_of


@brief
@dataclass(frozen=True)
class PruneStep:
    """One epoch of the loop.

    plan  the masks set after it, or None
    cost  what the target's quantity was when it was last measured; None without a target
    """

    result: trainer.EpochResult
    plan: selection.ChannelPlan | None
    cost: float | None = None


class ChannelPruning:
    """The loop over the populations `names` of a module, which is pruned in place.

    After the last mask update it goes on without the masked channels (`frozen`). Its `state`
    between two steps is all that is needed to go on. Raises UsageError before any training if the
    budget cannot be met.
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
        self._measurement = Measurement.of(module, data, recipe.seed, sca, names)
        self._statistics = self._measurement.statistics
        self._after_step = after_step
        self._training = trainer.Training(
            *(module, data, replace(recipe, epochs=sca.schedule.epochs)),
            hooks=self._statistics,
            tick=tick,
            after_step=after_step,
        )
        self._updates = Bundle({"training": self._training, **self._measurement.parts})
        self._reserve: frozen.Reserve = {}
        self._frozen: frozen.FrozenEpochs | None = None

    def run(self) -> Iterator[PruneStep]:
        """Go on, yielding after each epoch.

        It ends with the weights of the epoch with the best validation accuracy among those with the
        final masks; the state right after the last mask update is one of them.
        """
        schedule = self.sca.schedule
        if self._frozen is None:
            self._measurement.begin()
            for result in self._training.run(until=schedule.last_update):
                rise = schedule.rise_after.get(result.epoch)
                plan = None if rise is None else self._update(rise)
                yield PruneStep(result, plan, self._cost(plan))
            if schedule.last_update == schedule.epochs:
                return
            self._frozen = self._freeze()
            self._frozen.begin()
        for result, plan in self._frozen.run():
            yield PruneStep(result, plan, self._cost(plan))

    @property
    def module(self) -> GraphModule:
        """What is trained now: behind the last mask update, the network without masked channels."""
        return self._training.module if self._frozen is None else self._frozen.module

    def _cost(self, plan: selection.ChannelPlan | None) -> float | None:
        return self._measurement.cost if plan and self.sca.target else None

    @property
    def measurement(self) -> Measurement:
        """What decides, of the whole network."""
        return self._measurement

    def _freeze(self) -> frozen.FrozenEpochs:
        """Only called with masks that are final, or to be restored."""
        correction = None if self.sca.target is None else TargetCorrection(self._measurement)
        return frozen.FrozenEpochs(
            self._training,
            self.sca.removed_streams,
            reserve=self._reserve,
            correction=correction,
            after_step=self._after_step,
        )

    def state(self) -> Tree:
        """Of the epochs up to the last mask update, or of those after it."""
        if self._frozen is None:
            return self._updates.state()
        return {"frozen": self._frozen.state(), "dense": self._measurement.dense.state()}

    def restore(self, tree: Tree) -> None:
        """Raises FileFormatError also for what an earlier version wrote, which trained on masked
        channels to the end: going on from it would end in other weights.
        """
        told = "an earlier version wrote it, which fine-tuned at full width; leave --resume out"
        errors.require("best" not in tree, told)
        if "frozen" in tree:
            self._measurement.dense.restore(tree_of(tree, "dense"))
            self._frozen = self._freeze()
            self._frozen.restore(tree_of(tree, "frozen"))
        else:
            self._updates.restore(tree)

    def _update(self, rise: float) -> selection.ChannelPlan:
        """Set the masks that what was measured gives, and begin to measure anew."""
        measurement, training = self._measurement, self._training
        plan = measurement.decide(rise)
        measurement.apply(plan, training.optimizer)
        if rise == 1:
            plan = measurement.settle(training.optimizer) or plan
            self._reserve = measurement.reserve()
        self._statistics.reset()
        distributed.assert_ranks_agree("after the new masks", training.module, [rise])
        return plan


def plan_of_weights(
    module: GraphModule,
    data: datasets.Data,
    recipe: trainer.TrainConfig,
    sca: ScaConfig,
    names: Sequence[str],
) -> selection.ChannelPlan:
    """The final plan that the present weights would give (see `measured_weights`)."""
    return measured_weights(module, data, recipe, sca, names).decide(1.0)


def measured_weights(
    module: GraphModule,
    data: datasets.Data,
    recipe: trainer.TrainConfig,
    sca: ScaConfig,
    names: Sequence[str],
) -> Measurement:
    """What one epoch without learning measures of the present weights.

    Batch norm's running statistics move; use a module of its own.
    """
    measurement = Measurement.of(module, data, recipe.seed, sca, names)
    measurement.begin()
    trainer.begin_training(module, recipe)
    objective = recipe.objective.decided(module.graph)
    for index in torch.split(torch.arange(len(data.train)), recipe.batch_size):
        module.zero_grad()
        share = sampler.share_of(data.train.select(index), distributed.current())
        trainer.backward(module, data, share, measurement.statistics, objective)
    return measurement
