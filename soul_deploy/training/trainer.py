"""Training by direct coding; `Training.run` yields one result per epoch.

Whoever drives it acts between the epochs: keeps the best state, changes masks, stops. What has to
happen inside an epoch (scoring, gradients) comes in as `BatchHooks`. Between any two steps the
state is plain data, so a checkpoint can be written there and a run can go on from it.

On one machine, with one thread count, equal seeds give equal weights to the bit on the CPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from soul_deploy import distributed
from soul_deploy.base import errors
from soul_deploy.data import datasets, sampler
from soul_deploy.ir import Convolution
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training import state as saved
from soul_deploy.training.lr_schedules import Schedule, make_scheduler
from soul_deploy.training.objective import Objective

EVALUATION_BATCH = 256
Tick = Callable[[int, int, float], None]
"""Called after each batch with (batches done, batches, loss)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. Defaults are those of Soul's run script.

    objective  the task's loss; by default cross-entropy, and MSE for networks that vote
    nesterov   of SGD: momentum looks ahead; without momentum it changes nothing
    augment  "shift": moved by up to 2 pixels; "crop_flip": by up to 4, half of them mirrored
    l1       this times sign(w) is added to the gradient of every convolution's weights
    batch_size  of all processes together
    freeze_batch_norm  batch norms normalise by their running statistics, which stay as they are
    """

    epochs: int = 150
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = 64
    augment: sampler.Augment = "none"
    l1: float = 0.0
    seed: int = 2025
    freeze_batch_norm: bool = False
    objective: Objective = field(default_factory=Objective)

    def recorded(self) -> dict[str, Any]:
        """What files hold as the recipe: all but the epochs, which they hold beside it."""
        fields = asdict(self)
        del fields["epochs"]
        return fields

    def __post_init__(self) -> None:
        errors.require_least(1, epochs=self.epochs, batch_size=self.batch_size)
        errors.require_seed(self.seed)
        errors.require_known("optimizer", self.optimizer, OPTIMIZERS)
        errors.require_known("augmentation", self.augment, sampler.AUGMENTS)
        if not 0 < self.learning_rate < math.inf:
            raise errors.UsageError(
                f"learning_rate {self.learning_rate} must be above 0 and finite"
            )
        for name in ("weight_decay", "momentum", "l1"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise errors.UsageError(f"{name} {value} must not be negative, and finite")
        if self.momentum >= 1:
            raise errors.UsageError(
                f"momentum {self.momentum} must be below 1: it would grow for ever"
            )


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], TrainConfig], Optimizer]] = {
    "adam": lambda p, r: Adam(p, r.learning_rate, weight_decay=r.weight_decay),
    "sgd": lambda p, r: SGD(
        *(p, r.learning_rate, r.momentum),
        weight_decay=r.weight_decay,
        nesterov=r.nesterov and r.momentum > 0,
    ),
    "adamw": lambda p, r: AdamW(p, r.learning_rate, weight_decay=r.weight_decay),
    "rmsprop": lambda p, r: RMSprop(
        p, r.learning_rate, weight_decay=r.weight_decay, momentum=r.momentum
    ),
}


@dataclass(frozen=True)
class EpochResult:
    """One epoch: mean loss and accuracies (0 to 1); the training accuracy is of the moving weights.

    `epoch` counts from 1.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


class BatchHooks:
    """What happens inside an epoch besides learning; the default does nothing."""

    def forward(
        self, module: GraphModule, images: Tensor, weight: float = 1.0, *, per_step: bool = False
    ) -> Tensor:
        """Class scores of a training batch, or of a part of it with this weight.

        per_step: those of each step, (T, B, classes), instead of their mean.
        """
        return module.forward_observed(images, None, per_step=per_step)

    def after_backward(self, module: GraphModule) -> None:
        """Gradients are there, the optimizer has not stepped yet."""


def make_optimizer(module: nn.Module, config: TrainConfig) -> Optimizer:
    """The configured optimizer over all parameters."""
    return OPTIMIZERS[config.optimizer](list(module.parameters()), config)


class Training:
    """A module on its way through the epochs of `config`; trained in place.

    `optimizer`: made by `make_optimizer` for the caller who wants to see its state. `after_step` is
    called when a step is whole: what `state` gives there, and between the epochs, is all that is
    needed to go on, but for the hooks' own state. Hooks are told apart by whoever made them.
    """

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data,
        config: TrainConfig,
        *,
        hooks: BatchHooks | None = None,
        tick: Tick | None = None,
        optimizer: Optimizer | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        distributed.shared_batch_norm(module)
        self.module, self.data, self.config = module, data, config
        self.hooks, self.tick = hooks or BatchHooks(), tick
        self._objective = config.objective.decided(module.graph)
        self.optimizer = optimizer or make_optimizer(module, config)
        self.scheduler = make_scheduler(config.schedule, self.optimizer, config.epochs)
        self.progress = saved.TrainingCursor()
        self._after_step = after_step
        self._order = sampler.DataOrder(len(data.train), config.batch_size, config.seed)

    def state(self) -> saved.Tree:
        """Weights, masks, moments, rates and place."""
        return {
            "module": module_state(self.module),
            "optimizer": saved.optimizer_state(self.optimizer),
            "scheduler": saved.scheduler_state(self.scheduler),
            "progress": self.progress.state(),
        }

    def restore(self, tree: saved.Tree) -> None:
        restore_module(self.module, saved.tree_of(tree, "module"))
        saved.restore_optimizer(self.optimizer, saved.tree_of(tree, "optimizer"))
        saved.restore_scheduler(self.scheduler, saved.tree_of(tree, "scheduler"))
        self.progress.restore(saved.tree_of(tree, "progress"))
        self.progress.check(self.config.epochs, len(self._order.batches(0)), len(self.data.train))

    def run(self, until: int | None = None) -> Iterator[EpochResult]:
        """Train on, yielding after each epoch; the module is in evaluation mode then.

        until: the last epoch, counted from 1; None: that of the config. Raises SoulDeployError when
        the loss is no longer a number.
        """
        progress = self.progress
        distributed.assert_ranks_agree("at the start", self.module, [progress.epoch, progress.step])
        while progress.epoch < (self.config.epochs if until is None else until):
            start = time.perf_counter() - progress.seconds
            rate = float(self.optimizer.param_groups[0]["lr"])
            self._train_epoch(start)
            if self.config.schedule.moves_after(progress.epoch):
                self.scheduler.step()
            validation = accuracy(self.module, self.data, self.data.validation)
            samples, seconds = len(self.data.train), time.perf_counter() - start
            loss, hits = progress.loss / samples, progress.hits / samples
            progress.next_epoch()
            distributed.assert_ranks_agree(
                f"after epoch {progress.epoch}", self.module, [progress.epoch]
            )
            yield EpochResult(progress.epoch, loss, hits, validation, rate, seconds)

    def _train_epoch(self, start: float) -> None:
        """What is left of the present epoch."""
        config, progress = self.config, self.progress
        begin_training(self.module, config)
        split, group = self.data.train, distributed.current()
        batches = sampler.EpochBatches(split, self._order, config.augment, progress.epoch, group)
        while progress.step < len(batches):
            share = batches[progress.step]
            self.optimizer.zero_grad()
            loss, right = backward(self.module, self.data, share, self.hooks, self._objective)
            add_l1(self.module, config.l1)
            self.optimizer.step()
            progress.step += 1
            progress.loss += loss * share.samples
            progress.hits += right
            progress.seconds = time.perf_counter() - start
            if self.tick is not None:
                self.tick(progress.step, len(batches), loss)
            if self._after_step is not None:
                self._after_step()
        self.module.eval()


def begin_training(module: nn.Module, config: TrainConfig) -> None:
    """Training mode, except for batch norms that are frozen."""
    module.train()
    for layer in module.modules():
        if config.freeze_batch_norm and isinstance(layer, _BatchNorm):
            layer.eval()


def backward(
    module: GraphModule,
    data: datasets.Data,
    share: sampler.Share,
    hooks: BatchHooks,
    objective: Objective,
) -> tuple[float, int]:
    """Add the batch's gradients; returns its mean loss and how many samples were right.

    Of several processes each computes its share; all end with the whole batch's gradients. Raises
    SoulDeployError, in all of them, if the loss is not finite.
    """
    device = device_of(module)
    labels = share.own.labels.to(device)
    images = data.normalise(share.own.images).to(device)
    outputs = hooks.forward(module, images, share.weight, per_step=objective.tet)
    loss, scores = objective.loss(outputs, labels, module.graph.readout.over_time)
    mean, right = share.whole(loss, scores, labels)
    if not math.isfinite(mean):
        raise errors.SoulDeployError(
            f"training diverged: the loss is {mean}; lower the learning rate"
        )
    (loss * share.weight).backward()  # type: ignore[no-untyped-call]
    distributed.current().add_up_learning(module)
    hooks.after_backward(module)
    return mean, right


def add_l1(module: GraphModule, strength: float) -> None:
    if strength == 0:
        return
    for node in module.graph.of_type(Convolution):
        weight = module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor) and weight.grad is not None
        weight.grad.add_(weight.detach().sign(), alpha=strength)


@torch.no_grad()
def accuracy(module: GraphModule, data: datasets.Data, split: datasets.Split) -> float:
    """The share of `split` that an evaluation-mode `module` classifies correctly.

    Several processes take whole evaluation batches in turn, so that none of them is computed
    otherwise than by one process.
    """
    training, group = module.training, distributed.current()
    module.eval()
    device = device_of(module)
    hits = 0
    for index in group.mine(torch.split(torch.arange(len(split)), EVALUATION_BATCH)):
        batch = split.select(index)
        scores = module(data.normalise(batch.images).to(device))
        hits += int((scores.argmax(1).cpu() == batch.labels).sum())
    module.train(training)
    return group.total(hits) / len(split)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict that later training does not touch."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def module_state(module: GraphModule) -> saved.Tree:
    """Weights, buffers and channel masks."""
    masks = {name: mask.keep for name, mask in module.channel_masks.items()}
    return {"weights": dict(module.state_dict()), "channel_masks": masks}


def restore_module(module: GraphModule, tree: saved.Tree) -> None:
    """Copy weights, buffers and channel masks into `module`; its masks must be there already."""
    saved.fill(module.state_dict(), saved.tree_of(tree, "weights"), "weights")
    masks = {name: mask.keep for name, mask in module.channel_masks.items()}
    saved.fill(masks, saved.tree_of(tree, "channel_masks"), "channel masks")
    odd = [name for name, keep in masks.items() if not ((keep == 0) | (keep == 1)).all()]
    errors.require(not odd, f"channel masks: {', '.join(odd[:3])} hold other than 0 and 1")


class BestState:
    """Keeps the weights of the epoch with the highest validation accuracy (the first of equals)."""

    def __init__(self) -> None:
        self.result: EpochResult | None = None
        self._weights: dict[str, Tensor] = {}

    def offer(self, module: nn.Module, result: EpochResult) -> None:
        """Keep a copy of `module`'s weights if `result` is the best so far."""
        best = self.result
        if best is None or result.validation_accuracy > best.validation_accuracy:
            self.result, self._weights = result, copied_state(module)

    def take(self, module: nn.Module) -> EpochResult:
        """Load the kept weights into `module`; returns their epoch."""
        errors.require(
            self.result is not None, "no epoch was kept as the best; its checkpoint is damaged"
        )
        assert self.result is not None
        saved.fill(
            module.state_dict(), saved.split_tree(self._weights)[0], "the best epoch's weights"
        )
        return self.result

    def state(self) -> saved.Tree:
        """The best epoch and its weights."""
        epochs = [] if self.result is None else [asdict(self.result)]
        return {"epochs": epochs, "weights": self._weights}

    def restore(self, tree: saved.Tree) -> None:
        results = _results(saved.list_of(tree, "epochs"))
        kept = saved.tree_of(tree, "weights")
        fits = len(results) < 2 and bool(results) == bool(kept)
        errors.require(fits, f"the best epoch: {len(results)} results, {len(kept)} weights")
        self.result = results[0] if results else None
        self._weights = {
            name: torch.from_numpy(np.array(saved.array_of(kept, name))) for name in kept
        }


class History:
    """The results of all epochs so far."""

    def __init__(self) -> None:
        self.results: list[EpochResult] = []

    def state(self) -> saved.Tree:
        return {"epochs": [asdict(result) for result in self.results]}

    def restore(self, tree: saved.Tree) -> None:
        self.results = _results(saved.list_of(tree, "epochs"))


def _results(plain: list[Any]) -> list[EpochResult]:
    return [saved.record_of(EpochResult, entry) for entry in plain]
