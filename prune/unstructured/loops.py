"""The two loops of method U over a `Pruning`: the search for masks, and fine-tuning under them.

Each has `run`, one result per epoch, and `state`, which between any two steps is all that is needed
to go on.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base.errors import TargetError
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.prune.unstructured.lambda_control import (
    BALANCE,
    FAR,
    SETTLED,
    UPDATES,
    Adjustment,
    LambdaControl,
    adjust,
    balanced_lambda,
)
from soul_deploy.prune.unstructured.plan import (
    Finetune,
    SearchEpoch,
    SearchStoppedError,
    death_note,
)
from soul_deploy.prune.unstructured.search import Pruning
from soul_deploy.training.lr_schedules import make_scheduler
from soul_deploy.training.state import (
    Bundle,
    TrainingCursor,
    Tree,
    array_of,
    count_of,
    restore_scheduler,
    scheduler_state,
    tree_of,
)
from soul_deploy.training.trainer import BestState, accuracy, make_optimizer


class SearchLoop:
    """The search; masks and weights are trained in place."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning, setup = pruning, pruning.setup
        pruning.masks.attach(pruning.module)
        pruning.masks.heat(*setup.temperature.at(0))
        schedules = (pruning.recipe.schedule, setup.masks.schedule)
        self._schedulers = [
            make_scheduler(schedule, optimizer, setup.epochs)
            for schedule, optimizer in zip(schedules, pruning.optimizers(), strict=False)
        ]
        self._control = _Control(pruning)
        self._progress = TrainingCursor()
        self._last_good: Model | None = None

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch.

        Raises SearchStoppedError, with the hard model of the last epoch in which all layers lived,
        when one has died; with a target only at the end, since lambda then falls again, and when
        the target cannot be met.
        """
        pruning, control, progress = self.pruning, self._control, self._progress
        epochs = pruning.setup.epochs
        while progress.epoch < epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            pruning.train_epoch(0, progress, control.penalised, control.after_step)
            if pruning.recipe.schedule.moves_after(progress.epoch):
                for scheduler in self._schedulers:
                    scheduler.step()
            soft = accuracy(pruning.module, pruning.data, pruning.data.validation)
            adjustment = self._correct(progress.epoch + 1)
            result = pruning.finished(progress, rate, soft)
            measured = replace(pruning.measure("search", result), adjustment=adjustment)
            if measured.dead is None:
                self._last_good = pruning.hard_model(ModelInfo())
            elif pruning.setup.target is None or progress.epoch == epochs:
                raise SearchStoppedError(death_note(measured), self._last_good)
            yield measured

    def _correct(self, epochs: int) -> Adjustment | None:
        """Bring the connectivity within the band at the end, and before if lambda has failed to."""
        setup, meter = self.pruning.setup, self.pruning.meter
        target, final = setup.target, epochs == setup.epochs
        if target is None or epochs / setup.epochs < SETTLED:
            return None
        if not final and abs(meter.exact().share - target) <= FAR * target:
            return None
        try:
            return adjust(self.pruning.masks, target, meter.exact)
        except TargetError as error:
            if not final:
                return None
            raise SearchStoppedError(str(error), self._last_good) from error

    def state(self) -> Tree:
        """Pruning, schedules, lambda's controller, place, and the last model that was whole."""
        return {
            "pruning": self.pruning.state(),
            "schedulers": {str(i): scheduler_state(s) for i, s in enumerate(self._schedulers)},
            "control": self._control.state(),
            "progress": self._progress.state(),
            "last_good": _model_state(self._last_good),
        }

    def restore(self, tree: Tree) -> None:
        """Go on from there. Raises FileFormatError if it is the state of another search."""
        self.pruning.restore(tree_of(tree, "pruning"))
        saved = tree_of(tree, "schedulers")
        for i, scheduler in enumerate(self._schedulers):
            restore_scheduler(scheduler, tree_of(saved, str(i)))
        self._control.restore(tree_of(tree, "control"))
        self._progress.restore(tree_of(tree, "progress"))
        self.pruning.check(self._progress, self.pruning.setup.epochs)
        self._last_good = self._restored_model(tree_of(tree, "last_good"))

    def _restored_model(self, tree: Tree) -> Model | None:
        if not tree:
            return None
        state, neurons, alphas = (
            {name: np.array(array_of(part, name)) for name in part}
            for part in (tree_of(tree, kind) for kind in ("weights", "neuron_masks", "alphas"))
        )
        graph = self.pruning.module.graph
        return Model(graph, state, neuron_masks=neurons, alphas=alphas)


def _model_state(model: Model | None) -> Tree:
    if model is None:
        return {}
    return {
        "weights": dict(model.state),
        "neuron_masks": dict(model.neuron_masks),
        "alphas": dict(model.alphas),
    }


class FinetuneLoop:
    """Fine-tuning under the hard masks of a finished search."""

    def __init__(self, pruning: Pruning, plan: Finetune) -> None:
        self.pruning, self.plan = pruning, plan
        if plan.reset_optimizer:
            pruning.optimizer = make_optimizer(pruning.module, pruning.recipe)
        for group in pruning.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = plan.learning_rate
        self._scheduler = make_scheduler(plan.schedule, pruning.optimizer, plan.epochs)
        self._best = BestState()
        self._progress = TrainingCursor()

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch; ends with the best one."""
        pruning, progress = self.pruning, self._progress
        pruning.masks.attach_hard(pruning.module)
        while progress.epoch < self.plan.epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            searched = pruning.setup.epochs  # other data orders than in the search
            pruning.train_epoch(searched, progress, torch.mul, lambda: None)
            if self.plan.schedule.moves_after(progress.epoch):
                self._scheduler.step()
            hard = accuracy(pruning.module, pruning.data, pruning.data.validation)
            measured = pruning.measure("finetune", pruning.finished(progress, rate, hard))
            self._best.offer(pruning.module, measured.result)
            yield measured
        self._best.take(pruning.module)

    def state(self) -> Tree:
        """Pruning, schedule, place, the best epoch."""
        own = {"scheduler": scheduler_state(self._scheduler), "pruning": self.pruning.state()}
        return own | self._parts().state()

    def restore(self, tree: Tree) -> None:
        """Go on from there. Raises FileFormatError if it is the state of another fine-tuning."""
        self.pruning.restore(tree_of(tree, "pruning"))
        restore_scheduler(self._scheduler, tree_of(tree, "scheduler"))
        self._parts().restore({name: tree_of(tree, name) for name in ("progress", "best")})
        self.pruning.check(self._progress, self.plan.epochs)

    def _parts(self) -> Bundle:
        return Bundle({"progress": self._progress, "best": self._best})


class _Control:
    """What changes from step to step of a search: temperature and, with a target, lambda."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self.step = 0
        self.per_epoch = pruning.steps_per_epoch()
        self.total = self.per_epoch * pruning.setup.epochs
        self.interval = max(1, self.total // UPDATES)
        self.steering: LambdaControl | None = None

    def penalised(self, task: Tensor, weight: float) -> Tensor:
        """The task's loss plus the penalty, of a part of a batch with this weight."""
        pruning = self.pruning
        if not pruning.masks.parameters():
            return task * weight
        target = pruning.setup.target
        if target is not None and self.steering is None:
            balance = balanced_lambda(task * weight, pruning.masks)
            if pruning.lmbda is None:
                pruning.lmbda = BALANCE * balance
            self.steering = LambdaControl(target, pruning.lmbda, balance)
        assert pruning.lmbda is not None, "lambda is only open when there is a target"
        return (task + pruning.lmbda * pruning.masks.penalty()) * weight

    def after_step(self) -> None:
        """After each optimizer step."""
        self.step += 1
        pruning = self.pruning
        pruning.masks.heat(*pruning.setup.temperature.at(self.step / self.per_epoch))
        if self.steering is None or self.step % self.interval:
            return
        pruning.lmbda = self.steering.update(self.step / self.total, pruning.meter.estimate())

    def state(self) -> Tree:
        """Steps done, and lambda's controller once there is one."""
        return {"step": self.step, "steering": self.steering.state() if self.steering else {}}

    def restore(self, tree: Tree) -> None:
        """Go on from there."""
        self.step, target = count_of(tree, "step"), self.pruning.setup.target
        saved = tree_of(tree, "steering")
        if saved and target is not None:
            self.steering = LambdaControl.restored(target, saved)
