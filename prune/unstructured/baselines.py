"""Baselines for the search: weights go by their size, or at random, without trained masks.

Magnitude: of all masked layers together, the smallest |w| go first (Han et al., NeurIPS 2015, with
one threshold for all). Both can go at once or, along a ramp, epoch by epoch (Zhu and Gupta, 2017).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from soul_deploy.base import brief
from soul_deploy.base.errors import TargetError
from soul_deploy.model.model import Model
from soul_deploy.prune.ramp import RISE
from soul_deploy.prune.unstructured import threshold
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.prune.unstructured.stopped import SearchStoppedError
from soul_deploy.training import lr_schedules, trainer
from soul_deploy.training import state as saved
from soul_deploy.training.state import TrainingCursor, Tree, tree_of


@brief
@dataclass(frozen=True)
class WeightRanks:
    """Which weights stay: those that rank highest over all layers, as far as the budget goes.

    ranks: projection -> a number for each weight, in its shape, not negative.
    """

    ranks: Mapping[str, Tensor]

    @staticmethod
    def by_size(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> "WeightRanks":
        """|w|; what is not kept ranks lowest and stays so."""
        return WeightRanks({name: w.detach().abs() * kept[name] for name, w in weights.items()})

    @staticmethod
    def at_random(weights: Mapping[str, Tensor], seed: int) -> "WeightRanks":
        """Drawn from the seed, the same whenever they are asked for."""
        random = torch.Generator().manual_seed(seed)
        drawn = {n: torch.rand(w.shape, generator=random).to(w) for n, w in weights.items()}
        return WeightRanks(drawn)


class BaselineLoop:
    """Training under hard masks that a ramp brings to the target; in place."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning, self.epochs = pruning, pruning.training.epochs
        schedule = pruning.training.schedule
        self._scheduler = lr_schedules.make_scheduler(schedule, pruning.optimizer, self.epochs)
        self._cursor = TrainingCursor()
        modules = pruning.module.get_parameter
        self._weights = {name: modules(f"{name}.weight") for name in pruning.masks.weights}
        with torch.no_grad():
            for mask in pruning.masks:
                mask.alpha.fill_(1)

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch; the last one ends within the target.

        Raises SearchStoppedError, with the model of the nearest budget that can be met, if it
        cannot.
        """
        pruning, cursor = self.pruning, self._cursor
        while cursor.epoch < self.epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            if cursor.step == 0:
                self._prune(cursor.epoch)
            pruning.masks.attach_hard(pruning.module)
            pruning.train_epoch(0, cursor, torch.mul, lambda: None)
            if pruning.training.schedule.moves_after(cursor.epoch):
                self._scheduler.step()
            adjustment = self._shift(1.0) if cursor.epoch + 1 == self.epochs else None
            pruning.masks.attach_hard(pruning.module)
            hard = trainer.accuracy(pruning.module, pruning.data, pruning.data.validation)
            result = pruning.finished(cursor, rate, hard)
            yield pruning.measure(pruning.config.method, result, adjustment)

    def _prune(self, epoch: int) -> None:
        """Rank the weights, and keep as many as the ramp has it for this epoch."""
        pruning, ramp = self.pruning, RISE[self.pruning.config.prune_ramp]
        part = ramp((epoch + 1) / self.epochs)
        if epoch > 0 and part == ramp(epoch / self.epochs):
            return
        masks = pruning.masks.weights
        if pruning.config.method == "random":
            ranks = WeightRanks.at_random(self._weights, pruning.training.seed)
        else:
            kept = {name: mask.keep() for name, mask in masks.items()}
            ranks = WeightRanks.by_size(self._weights, kept)
        with torch.no_grad():
            for name, mask in masks.items():
                mask.alpha.copy_(ranks.ranks[name])
        self._shift(part)

    def _shift(self, part: float) -> threshold.Adjustment | None:
        """Move the threshold to `part` of the way from the dense network to the target."""
        pruning = self.pruning
        assert pruning.budget is not None, "SearchConfig asks for a target"
        budget = pruning.budget.on_the_way(part)
        try:
            return threshold.shift(pruning.module, pruning.masks, budget, pruning.dead)
        except TargetError as error:
            kept: Model | None = None if pruning.dead() else pruning.hard_model()
            raise SearchStoppedError(str(error), kept) from error

    def state(self) -> Tree:
        """Pruning, schedule, cursor."""
        return {
            "pruning": self.pruning.state(),
            "scheduler": saved.scheduler_state(self._scheduler),
            "progress": self._cursor.state(),
        }

    def restore(self, tree: Tree) -> None:
        self.pruning.restore(tree_of(tree, "pruning"))
        saved.restore_scheduler(self._scheduler, tree_of(tree, "scheduler"))
        self._cursor.restore(tree_of(tree, "progress"))
        self.pruning.check(self._cursor, self.epochs)
