"""The search, in which the temperature rises and lambda may be steered, and the fine-tuning."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base.errors import SoulDeployError, TargetError
from soul_deploy.model.model import Model
from soul_deploy.prune.unstructured import lambda_control
from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.training import lr_schedules, trainer
from soul_deploy.training import state as saved
from soul_deploy.training.state import TrainingCursor, Tree, tree_of


class SearchStoppedError(SoulDeployError):
    """The search cannot go on; `last_good`: the hard model of the last epoch that was whole."""

    def __init__(self, message: str, last_good: Model | None) -> None:
        self.last_good = last_good
        super().__init__(message)


class SearchLoop:
    """The search; masks and weights are trained in place."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning, self.epochs = pruning, pruning.training.epochs
        self._answered = pruning.responds()
        pruning.masks.attach(pruning.module)
        self._schedule = pruning.training.schedule
        self._schedulers = [
            lr_schedules.make_scheduler(self._schedule, optimizer, self.epochs)
            for optimizer in pruning.optimizers()
        ]
        self._control = _Control(pruning)
        self._cursor = TrainingCursor()
        self._last_good: Model | None = None

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch.

        Hard masks that leave nothing of a layer do not end it while the soft network works, since
        they come back. Raises SearchStoppedError, with the hard model of the last epoch in which
        all layers lived, when the soft network has died too (its scores have depended on the input,
        and no longer do), when the last epoch's hard masks leave nothing of a layer, and when the
        target cannot be met.
        """
        pruning, control, cursor = self.pruning, self._control, self._cursor
        while cursor.epoch < self.epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            pruning.train_epoch(0, cursor, control.penalised, control.after_step)
            if self._schedule.moves_after(cursor.epoch):
                for scheduler in self._schedulers:
                    scheduler.step()
            soft = trainer.accuracy(pruning.module, pruning.data, pruning.data.validation)
            adjustment = self._correct(cursor.epoch + 1)
            result = pruning.finished(cursor, rate, soft)
            measured = pruning.measure("search", result, adjustment)
            if measured.dead is None:
                self._last_good = measured.model
            answers = pruning.responds()
            if measured.dead is not None and (
                cursor.epoch == self.epochs or (self._answered and not answers)
            ):
                raise SearchStoppedError(
                    f"search epoch {result.epoch}: no synapse of {measured.dead} is left (lambda "
                    f"{measured.lmbda:.3g}), so the output no longer depends on the input; lower "
                    "penalty_lmbda, or give target_connectivity (a higher one)",
                    self._last_good,
                )
            self._answered = self._answered or answers
            yield measured

    def _correct(self, epochs: int) -> lambda_control.Adjustment | None:
        """Bring the connectivity within the band at the end, and before if lambda has failed to."""
        meter, final = self.pruning.meter, epochs == self.epochs
        target = self.pruning.config.target_connectivity
        if target is None or epochs / self.epochs < lambda_control.SETTLED:
            return None
        if not final and abs(meter.exact().share - target) <= lambda_control.FAR * target:
            return None
        try:
            return lambda_control.adjust(self.pruning.masks, target, meter.exact)
        except TargetError as error:
            if not final:
                return None
            raise SearchStoppedError(str(error), self._last_good) from error

    def state(self) -> Tree:
        """Pruning, schedules, lambda's controller, cursor, and the last model that was whole."""
        schedulers = {str(i): saved.scheduler_state(s) for i, s in enumerate(self._schedulers)}
        good = self._last_good
        return {
            "pruning": self.pruning.state(),
            "schedulers": schedulers,
            "control": self._control.state(),
            "progress": self._cursor.state(),
            "answered": self._answered,
            "last_good": {kind: dict(getattr(good, SAVED[kind])) for kind in SAVED if good},
        }

    def restore(self, tree: Tree) -> None:
        self.pruning.restore(tree_of(tree, "pruning"))
        schedules = tree_of(tree, "schedulers")
        for i, scheduler in enumerate(self._schedulers):
            saved.restore_scheduler(scheduler, tree_of(schedules, str(i)))
        self._control.restore(tree_of(tree, "control"))
        self._cursor.restore(tree_of(tree, "progress"))
        self.pruning.check(self._cursor, self.epochs)
        self._answered = bool(tree.get("answered"))
        if good := tree_of(tree, "last_good"):
            parts = {field: tree_of(good, kind) for kind, field in SAVED.items()}
            arrays: dict[str, Any] = {
                field: {name: np.array(saved.array_of(part, name)) for name in part}
                for field, part in parts.items()
            }
            graph, info = self.pruning.module.graph, self.pruning.info
            self._last_good = Model(graph, info=info, **arrays)


SAVED = {"weights": "state", "neuron_masks": "neuron_masks", "alphas": "alphas"}
"""What is saved of the last model that was whole -> field of Model."""


class _Control:
    """What changes from step to step of a search: temperature and, with a target, lambda."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self.step = 0
        self.per_epoch = pruning.steps_per_epoch()
        self.total = self.per_epoch * pruning.training.epochs
        self.interval = max(1, self.total // lambda_control.UPDATES)
        self.steering: lambda_control.LambdaControl | None = None
        self.temperature = pruning.config.temperature(pruning.training.epochs)
        pruning.masks.heat(*self.temperature.at(0))

    def penalised(self, task: Tensor, weight: float) -> Tensor:
        """The task's loss plus the penalty, of a part of a batch with this weight."""
        pruning = self.pruning
        if not pruning.masks.parameters():
            return task * weight
        target = pruning.config.target_connectivity
        if target is not None and self.steering is None:
            balance = lambda_control.balanced_lambda(task * weight, pruning.masks)
            if pruning.lmbda is None:
                pruning.lmbda = lambda_control.BALANCE * balance
            self.steering = lambda_control.LambdaControl(target, pruning.lmbda, balance)
        assert pruning.lmbda is not None, "lambda is only open when there is a target"
        return (task + pruning.lmbda * pruning.masks.penalty()) * weight

    def after_step(self) -> None:
        """After each optimizer step."""
        self.step += 1
        pruning = self.pruning
        pruning.masks.heat(*self.temperature.at(self.step / self.per_epoch))
        if self.steering is None or self.step % self.interval:
            return
        pruning.lmbda = self.steering.update(self.step / self.total, pruning.meter.estimate())

    def state(self) -> Tree:
        """Steps done, and lambda's controller once there is one."""
        return {"step": self.step, "steering": self.steering.state() if self.steering else {}}

    def restore(self, tree: Tree) -> None:
        self.step, target = saved.count_of(tree, "step"), self.pruning.config.target_connectivity
        steering = tree_of(tree, "steering")
        if steering and target is not None:
            self.steering = lambda_control.LambdaControl.restored(target, steering)


class FinetuneLoop:
    """Fine-tuning under the hard masks of a finished search."""

    def __init__(self, pruning: Pruning, config: FinetuneConfig) -> None:
        self.pruning, self.config = pruning, config
        if config.reset_optimizer:
            pruning.optimizer = trainer.make_optimizer(pruning.module, pruning.training)
        for group in pruning.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = config.learning_rate
        parts = config.schedule, pruning.optimizer, config.epochs
        self._scheduler = lr_schedules.make_scheduler(*parts)
        self._best, self._cursor = trainer.BestState(), TrainingCursor()

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch; ends with the best one."""
        pruning, cursor = self.pruning, self._cursor
        pruning.masks.attach_hard(pruning.module)
        while cursor.epoch < self.config.epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            searched = pruning.training.epochs  # other data orders than in the search
            pruning.train_epoch(searched, cursor, torch.mul, lambda: None)
            if self.config.schedule.moves_after(cursor.epoch):
                self._scheduler.step()
            hard = trainer.accuracy(pruning.module, pruning.data, pruning.data.validation)
            measured = pruning.measure("finetune", pruning.finished(cursor, rate, hard))
            self._best.offer(pruning.module, measured.result)
            yield measured
        self._best.take(pruning.module)

    def state(self) -> Tree:
        """Pruning, schedule, cursor, the best epoch."""
        own = {"scheduler": saved.scheduler_state(self._scheduler), "pruning": self.pruning.state()}
        return own | self._parts().state()

    def restore(self, tree: Tree) -> None:
        self.pruning.restore(tree_of(tree, "pruning"))
        saved.restore_scheduler(self._scheduler, tree_of(tree, "scheduler"))
        self._parts().restore({name: tree_of(tree, name) for name in ("progress", "best")})
        self.pruning.check(self._cursor, self.config.epochs)

    def _parts(self) -> saved.Bundle:
        return saved.Bundle({"progress": self._cursor, "best": self._best})
