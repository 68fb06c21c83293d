"""The search, in which the temperature rises and lambda may be steered, and the fine-tuning."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base.errors import TargetError
from soul_deploy.model.model import Model
from soul_deploy.prune.target import TOLERANCE
from soul_deploy.prune.unstructured import lambda_control, threshold
from soul_deploy.prune.unstructured.budget import Budget
from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.prune.unstructured.stopped import SearchStoppedError as SearchStoppedError
from soul_deploy.training import lr_schedules, trainer
from soul_deploy.training import state as saved
from soul_deploy.training.state import TrainingCursor, Tree, tree_of

LATE = 0.6
"""The share of the search after which an epoch that ends far from its target is corrected."""
FAR = 0.5
"""How far off that is, relative to the target."""


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
        self._control = _Control(pruning, young=not self._answered)
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
                    "penalty_lmbda, or give a target (a higher one)",
                    self._last_good,
                )
            self._answered = self._answered or answers
            if pruning.budget is not None:
                pruning.budget.spending.look()
            yield measured

    def _correct(self, epochs: int) -> threshold.Adjustment | None:
        """Bring the masks to the budget at the end, and before if lambda has failed to.

        At the end to within 1 %: lambda gets within 5 %, but the thresholds are at hand, and who
        compares two networks at one budget should not have to ask at which end of it each stands.
        """
        pruning, final, late = self.pruning, epochs == self.epochs, epochs / self.epochs >= LATE
        budget = pruning.budget
        if budget is None or not late:
            return None
        if not final and abs(budget.spending.exact() - budget.wanted) <= FAR * budget.wanted:
            return None
        near = threshold.NEAR if final else TOLERANCE
        try:
            return threshold.shift(pruning.module, pruning.masks, budget, pruning.dead, near)
        except TargetError as error:
            if not final:
                return None
            kept = self._last_good if pruning.dead() else pruning.hard_model()
            raise SearchStoppedError(str(error), kept) from error

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

    def __init__(self, pruning: Pruning, *, young: bool) -> None:
        self.pruning, self.young = pruning, young
        self.step, self._estimated = 0, -1
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
        if pruning.budget is not None and self._open and self._estimated < self.step:
            self._estimate(task * weight, pruning.budget)
            self._estimated = self.step
        assert pruning.lmbda is not None, "lambda is only open when there is a target"
        return (task + pruning.lmbda * pruning.masks.penalty()) * weight

    @property
    def _open(self) -> bool:
        """Whether lambda is to be estimated: at first, and again while a fresh network learns."""
        again = self.young and self.pruning.config.penalty_lmbda is None
        early = self.step < lambda_control.SETTLED * self.total
        return self.step == 0 or (again and early and self.step % self.interval == 0)

    def _estimate(self, task: Tensor, budget: Budget) -> None:
        pruning = self.pruning
        if self.steering is None and pruning.lmbda is not None:
            self.steering = lambda_control.LambdaControl(pruning.lmbda)
            return
        suited = lambda_control.suited_lambda(task, pruning.masks, budget)
        self.steering = self.steering or lambda_control.LambdaControl(suited)
        self.steering.set(max(suited, self.steering.value))
        pruning.lmbda = self.steering.value

    def after_step(self) -> None:
        """After each optimizer step."""
        self.step += 1
        pruning = self.pruning
        pruning.masks.heat(*self.temperature.at(self.step / self.per_epoch))
        if self.steering is None or pruning.budget is None or self.step % self.interval:
            return
        budget, progress = pruning.budget, self.step / self.total
        dense = budget.spending.dense / budget.wanted
        pruning.lmbda = self.steering.update(progress, budget.excess(), dense)

    def state(self) -> Tree:
        """Steps done, whether the start was silent, and lambda's controller once there is one."""
        steering = self.steering.state() if self.steering else {}
        return {"step": self.step, "young": self.young, "steering": steering}

    def restore(self, tree: Tree) -> None:
        self.step, self.young = saved.count_of(tree, "step"), bool(tree.get("young"))
        if steering := tree_of(tree, "steering"):
            self.steering = lambda_control.LambdaControl.restored(steering)


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
        self._best_alphas: dict[str, Tensor] = {}

    def run(self) -> Iterator[SearchEpoch]:
        """Go on, yielding after each epoch; ends with the best one, of those within the target.

        Fine-tuning changes SynOps though the masks stand, so that with such a target an epoch that
        ends off it is corrected as a search is, but not the last if there is one to keep. Raises
        SearchStoppedError, with the last epoch's model, if none is within the target.
        """
        pruning, cursor = self.pruning, self._cursor
        pruning.masks.attach_hard(pruning.module)
        while cursor.epoch < self.config.epochs:
            rate = float(pruning.optimizer.param_groups[0]["lr"])
            searched = pruning.training.epochs  # other data orders than in the search
            pruning.train_epoch(searched, cursor, torch.mul, lambda: None)
            if self.config.schedule.moves_after(cursor.epoch):
                self._scheduler.step()
            adjustment = self._correct(cursor.epoch + 1)
            hard = trainer.accuracy(pruning.module, pruning.data, pruning.data.validation)
            result = pruning.finished(cursor, rate, hard)
            measured = pruning.measure("finetune", result, adjustment)
            self._offer(measured)
            yield measured
        self._take()

    def _correct(self, epochs: int) -> threshold.Adjustment | None:
        pruning, last = self.pruning, epochs == self.config.epochs
        if pruning.budget is None or (last and self._best.result is not None):
            return None
        try:
            return threshold.shift(pruning.module, pruning.masks, pruning.budget, pruning.dead)
        except TargetError:
            return None  # a later epoch may; if none does, the end says so
        finally:
            pruning.masks.attach_hard(pruning.module)

    def _offer(self, measured: SearchEpoch) -> None:
        """Keep the epoch if it is the best so far."""
        pruning, budget = self.pruning, self.pruning.budget
        if budget is None or budget.reached(budget.spending.exact()):
            self._best.offer(pruning.module, measured.result)
            if self._best.result == measured.result:
                masks = pruning.masks.named()
                self._best_alphas = {n: m.alpha.detach().clone() for n, m in masks.items()}

    def _take(self) -> None:
        """Go back to the best epoch."""
        pruning, budget = self.pruning, self.pruning.budget
        if self._best.result is None and budget is not None:
            spent = budget.told(budget.spending.exact())
            raise SearchStoppedError(
                f"{budget.target}: no epoch of the fine-tuning ended within {TOLERANCE:.0%} of "
                f"{budget.told(budget.wanted)}; the last one is at {spent}. Fine-tune longer, or "
                "with a lower finetune_lr",
                pruning.hard_model(),
            )
        self._best.take(pruning.module)
        for name, mask in pruning.masks.named().items():
            mask.alpha.data.copy_(self._best_alphas[name])
        pruning.masks.attach_hard(pruning.module)

    def state(self) -> Tree:
        """Pruning, schedule, cursor, the best epoch and its masks."""
        own = {"scheduler": saved.scheduler_state(self._scheduler), "pruning": self.pruning.state()}
        return own | self._parts().state() | {"best_alphas": self._best_alphas}

    def restore(self, tree: Tree) -> None:
        self.pruning.restore(tree_of(tree, "pruning"))
        self.pruning.masks.attach_hard(self.pruning.module)
        saved.restore_scheduler(self._scheduler, tree_of(tree, "scheduler"))
        self._parts().restore({name: tree_of(tree, name) for name in ("progress", "best")})
        held = tree_of(tree, "best_alphas")
        self._best_alphas = {n: torch.from_numpy(np.array(saved.array_of(held, n))) for n in held}
        if held:
            saved.same_names("the best epoch's masks", self.pruning.masks.named(), held)
        self.pruning.check(self._cursor, self.config.epochs)

    def _parts(self) -> saved.Bundle:
        return saved.Bundle({"progress": self._cursor, "best": self._best})
