"""Fine-tuning under the hard masks of a finished search."""

from collections.abc import Iterator

import torch

from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.training import lr_schedules, trainer
from soul_deploy.training import state as saved
from soul_deploy.training.state import TrainingCursor, Tree, tree_of


class FinetuneLoop:
    """Fine-tuning under the hard masks of a finished search."""

    def __init__(self, pruning: Pruning, config: FinetuneConfig) -> None:
        self.pruning, self.config = pruning, config
        if config.reset_optimizer:
            pruning.optimizer = trainer.make_optimizer(pruning.module, pruning.training)
        for group in pruning.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = config.learning_rate
        self._scheduler = lr_schedules.make_scheduler(
            config.schedule, pruning.optimizer, config.epochs
        )
        self._best = trainer.BestState()
        self._cursor = TrainingCursor()

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
        """Go on from there. Raises FileFormatError if it is the state of another fine-tuning."""
        self.pruning.restore(tree_of(tree, "pruning"))
        saved.restore_scheduler(self._scheduler, tree_of(tree, "scheduler"))
        self._parts().restore({name: tree_of(tree, name) for name in ("progress", "best")})
        self.pruning.check(self._cursor, self.config.epochs)

    def _parts(self) -> saved.Bundle:
        return saved.Bundle({"progress": self._cursor, "best": self._best})
