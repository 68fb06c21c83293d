"""Training by direct coding and cross-entropy; `fit` is a generator, one result per epoch.

Whoever drives it acts between the epochs: keeps the best state, changes masks, stops. What has to
happen inside an epoch (scoring, gradients) comes in as `BatchHooks`.

On one machine, with one thread count, equal seeds give equal weights to the bit on the CPU.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from soul_deploy.data import Data, Split
from soul_deploy.graph import Convolution
from soul_deploy.module import GraphModule
from soul_deploy.runtime.errors import SoulDeployError, UnknownNameError, UsageError
from soul_deploy.schedules import Schedule, make_scheduler

Augment = Literal["none", "shift", "crop_flip"]
SHIFT = {"none": 0, "shift": 2, "crop_flip": 4}
EVALUATION_BATCH = 256
Tick = Callable[[int, int, float], None]
"""Called after each batch with (batches done, batches, loss)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Defaults are those of Soul's run script.

    augment  "shift": moved by up to 2 pixels; "crop_flip": by up to 4, half of them mirrored
    l1       this times sign(w) is added to the gradient of every convolution's weights
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = 64
    augment: Augment = "none"
    l1: float = 0.0
    seed: int = 2025

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", self.optimizer, OPTIMIZERS)
        if self.augment not in SHIFT:
            raise UnknownNameError("augmentation", self.augment, SHIFT)
        if self.batch_size < 1:
            raise UsageError(f"batch_size {self.batch_size} must be at least 1")
        if not self.learning_rate > 0:
            raise UsageError(f"learning_rate {self.learning_rate} must be above 0")
        for name, value in (
            ("weight_decay", self.weight_decay),
            ("momentum", self.momentum),
            ("l1", self.l1),
        ):
            if not value >= 0:
                raise UsageError(f"{name} {value} must not be negative")


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], Recipe], Optimizer]] = {
    "adam": lambda p, r: Adam(p, r.learning_rate, weight_decay=r.weight_decay),
    "sgd": lambda p, r: SGD(p, r.learning_rate, r.momentum, weight_decay=r.weight_decay),
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

    def forward(self, module: GraphModule, images: Tensor) -> Tensor:
        """Class scores of a training batch."""
        scores: Tensor = module(images)
        return scores

    def after_backward(self, module: GraphModule) -> None:
        """Gradients are there, the optimizer has not stepped yet."""


def make_optimizer(module: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer over all parameters."""
    return OPTIMIZERS[recipe.optimizer](list(module.parameters()), recipe)


def fit(
    module: GraphModule,
    data: Data,
    recipe: Recipe,
    epochs: int,
    hooks: BatchHooks | None = None,
    tick: Tick | None = None,
    optimizer: Optimizer | None = None,
) -> Iterator[EpochResult]:
    """Train in place, yielding after each epoch; the module is in evaluation mode then.

    `optimizer`: made by `make_optimizer` for the caller who wants to see its state. Raises
    SoulDeployError when the loss is no longer a number.
    """
    hooks = hooks or BatchHooks()
    optimizer = optimizer or make_optimizer(module, recipe)
    scheduler = make_scheduler(recipe.schedule, optimizer, epochs)
    random = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(epochs):
        start = time.perf_counter()
        rate = float(optimizer.param_groups[0]["lr"])
        loss, hits = _train_epoch(module, data, recipe, optimizer, random, hooks, tick)
        if recipe.schedule.moves_after(epoch):
            scheduler.step()
        validation = accuracy(module, data, data.validation)
        seconds = time.perf_counter() - start
        yield EpochResult(epoch + 1, loss, hits, validation, rate, seconds)


def _train_epoch(
    module: GraphModule,
    data: Data,
    recipe: Recipe,
    optimizer: Optimizer,
    random: torch.Generator,
    hooks: BatchHooks,
    tick: Tick | None,
) -> tuple[float, float]:
    """Mean loss and accuracy over the epoch's samples."""
    module.train()
    order = torch.randperm(len(data.train), generator=random)
    batches = torch.split(order, recipe.batch_size)
    total, hits = 0.0, 0
    for done, index in enumerate(batches, start=1):
        batch = data.train.select(index)
        batch = replace(batch, images=augmented(batch.images, recipe.augment, random))
        optimizer.zero_grad()
        loss, right = backward(module, data, batch, hooks)
        add_l1(module, recipe.l1)
        optimizer.step()
        total += loss * len(index)
        hits += right
        if tick is not None:
            tick(done, len(batches), loss)
    module.eval()
    return total / len(order), hits / len(order)


def backward(module: GraphModule, data: Data, batch: Split, hooks: BatchHooks) -> tuple[float, int]:
    """Add the batch's gradients; returns its mean loss and how many samples were right.

    Raises SoulDeployError if the loss is not finite.
    """
    device = device_of(module)
    labels = batch.labels.to(device)
    scores = hooks.forward(module, data.normalise(batch.images).to(device))
    loss = F.cross_entropy(scores, labels)
    if not loss.isfinite():
        raise SoulDeployError(
            f"training diverged: the loss is {loss.item()}; lower the learning rate"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    hooks.after_backward(module)
    return loss.item(), int((scores.argmax(1) == labels).sum())


def add_l1(module: GraphModule, strength: float) -> None:
    if strength == 0:
        return
    for node in module.graph.of_type(Convolution):
        weight = module.get_submodule(node.name).weight
        assert isinstance(weight, Tensor) and weight.grad is not None
        weight.grad.add_(weight.detach().sign(), alpha=strength)


@torch.no_grad()
def accuracy(module: GraphModule, data: Data, split: Split) -> float:
    """The share of `split` that an evaluation-mode `module` classifies correctly."""
    training = module.training
    module.eval()
    device = device_of(module)
    hits = 0
    for index in torch.split(torch.arange(len(split)), EVALUATION_BATCH):
        batch = split.select(index)
        scores = module(data.normalise(batch.images).to(device))
        hits += int((scores.argmax(1).cpu() == batch.labels).sum())
    module.train(training)
    return hits / len(split)


def augmented(images: Tensor, kind: Augment, random: torch.Generator) -> Tensor:
    """uint8 images (B, C, H, W), each moved over a black border, perhaps mirrored."""
    if kind == "none":
        return images
    reach = SHIFT[kind]
    count, _, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach))
    top, left = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=random)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if kind == "crop_flip":
        mirrored = torch.rand(count, 1, generator=random) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict that later training does not touch."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class BestState:
    """Keeps the weights of the epoch with the highest validation accuracy (the first of equals)."""

    def __init__(self) -> None:
        self.result: EpochResult | None = None
        self._state: dict[str, Tensor] = {}

    def offer(self, module: nn.Module, result: EpochResult) -> None:
        """Keep a copy of `module`'s weights if `result` is the best so far."""
        best = self.result
        if best is None or result.validation_accuracy > best.validation_accuracy:
            self.result, self._state = result, copied_state(module)

    def restore(self, module: nn.Module) -> EpochResult:
        """Load the kept weights; returns their epoch."""
        assert self.result is not None, "no epoch was offered"
        module.load_state_dict(self._state)
        return self.result
