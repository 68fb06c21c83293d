"""Method U: search for masks of weights and neurons with a penalty, then fine-tune under them.

Shi et al., ICLR 2024 (published code, main.py): the loss is the task's plus
lambda · Σ e_w · sigmoid(beta · alpha_w) + lambda · Σ e_n · sigmoid(beta · alpha_n), with the
constants of `soul_deploy.prune.penalty`. Weights and masks have an optimizer each; both start every
step from zeroed gradients. Fine-tuning keeps the masks as they are, without the penalty.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_deploy.connectivity import Connectivity
from soul_deploy.counting import count_model
from soul_deploy.data import Data
from soul_deploy.graph import SpikingGraph
from soul_deploy.modelfile import Model, ModelInfo, from_module
from soul_deploy.module import GraphModule
from soul_deploy.prune.groups import reaches_readout
from soul_deploy.prune.lambda_control import (
    BALANCE,
    FAR,
    SETTLED,
    UPDATES,
    Adjustment,
    ConnectivityMeter,
    LambdaControl,
    adjust,
    balanced_lambda,
)
from soul_deploy.prune.objective import Objective
from soul_deploy.prune.softmask import Masks, Temperature
from soul_deploy.runtime.errors import SoulDeployError
from soul_deploy.schedules import Schedule, make_scheduler
from soul_deploy.training import (
    OPTIMIZERS,
    BestState,
    EpochResult,
    Recipe,
    Tick,
    accuracy,
    add_l1,
    augmented,
    make_optimizer,
)

COUNTED_IMAGES = 32
"""Size of the fixed sample on which SynOps are counted after every epoch."""


@dataclass(frozen=True)
class Search:
    """What a search is, besides the recipe of its weights.

    lmbda   lambda; with a target it is where the control starts, None: balanced on the first batch
    masks   optimizer, learning rate and weight decay of the masks
    target  the connectivity to end at, or None
    """

    epochs: int
    temperature: Temperature
    masks: Recipe
    lmbda: float | None = 1e-11
    target: float | None = None
    accumulate: int = 1
    objective: Objective = field(default_factory=Objective)


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning with fixed masks."""

    epochs: int
    learning_rate: float
    schedule: Schedule
    reset_optimizer: bool = False


@dataclass(frozen=True)
class SearchEpoch:
    """An epoch of the search or of the fine-tuning, measured at its end.

    result: its validation accuracy is with soft masks while searching. synops: per image, on a
    fixed sample, under the hard masks. adjustment: the threshold's correction after this epoch.
    """

    phase: str
    result: EpochResult
    lmbda: float
    temperature: tuple[float, float]
    connectivity: Connectivity
    synops: float
    hard_accuracy: float
    dead: str | None = None
    """What the output needs and has no synapse left: a layer, or the neurons of a class."""
    adjustment: Adjustment | None = None


class SearchStoppedError(SoulDeployError):
    """The search cannot go on; `last_good`: the hard model of the last epoch that was whole."""

    def __init__(self, message: str, last_good: Model | None) -> None:
        self.last_good = last_good
        super().__init__(message)


def _dead(graph: SpikingGraph, connectivity: Connectivity, empty_class: int | None) -> str | None:
    """A layer without synapses, if nothing goes around it (as it does around a residual block)."""
    empty = [layer.projection for layer in connectivity.layers if layer.live == 0]
    for i, name in enumerate(empty):
        if not reaches_readout(graph, empty[: i + 1]):
            return name
    return None if empty_class is None else f"class {empty_class}"


def _death(epoch: SearchEpoch) -> str:
    return (
        f"search epoch {epoch.result.epoch}: no synapse of {epoch.dead} is left "
        f"(lambda {epoch.lmbda:.3g}), so the output no longer depends on the input; lower "
        "penalty_lmbda, or give target_connectivity (a higher one)"
    )


class Pruning:
    """A module, its masks and both optimizers, through the search and the fine-tuning."""

    def __init__(
        self,
        module: GraphModule,
        data: Data,
        recipe: Recipe,
        search: Search,
        masks: Masks,
        tick: Tick | None = None,
    ) -> None:
        self.module, self.data, self.recipe = module, data, recipe
        self.setup, self.masks = search, masks
        self.tick = tick
        self.optimizer = make_optimizer(module, recipe)
        parameters = masks.parameters()
        make = OPTIMIZERS[search.masks.optimizer]
        self.mask_optimizer = make(parameters, search.masks) if parameters else None
        self.meter = ConnectivityMeter(module, masks)
        self.lmbda = search.lmbda
        self._random = torch.Generator().manual_seed(recipe.seed)
        images = data.validation.images[:COUNTED_IMAGES]
        self._sample = data.normalise(images)

    def search(self) -> Iterator[SearchEpoch]:
        """Run the search, yielding after each epoch; masks and weights are trained in place.

        Raises SearchStoppedError, with the hard model of the last epoch in which all layers lived,
        when one has died; with a target only at the end, since lambda then falls again, and when
        the target cannot be met.
        """
        self.masks.attach(self.module)
        self.masks.heat(*self.setup.temperature.at(0))
        schedulers = [make_scheduler(self.recipe.schedule, self.optimizer, self.setup.epochs)]
        if self.mask_optimizer is not None:
            schedule = self.setup.masks.schedule
            schedulers.append(make_scheduler(schedule, self.mask_optimizer, self.setup.epochs))
        control = _Control(self)
        last_good: Model | None = None
        for epoch in range(self.setup.epochs):
            start, rate = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
            loss, hits = self._train_epoch(control.penalised, control.after_step)
            if self.recipe.schedule.moves_after(epoch):
                for scheduler in schedulers:
                    scheduler.step()
            soft = accuracy(self.module, self.data, self.data.validation)
            final = epoch == self.setup.epochs - 1
            adjustment = self._correct(epoch + 1, last_good)
            result = EpochResult(epoch + 1, loss, hits, soft, rate, 0.0)
            measured = replace(self._measure("search", result, start), adjustment=adjustment)
            if measured.dead is None:
                last_good = self.hard_model(ModelInfo())
            elif self.setup.target is None or final:
                raise SearchStoppedError(_death(measured), last_good)
            yield measured

    def _correct(self, epochs: int, last_good: Model | None) -> Adjustment | None:
        """Bring the connectivity within the band at the end, and before if lambda has failed to."""
        target, final = self.setup.target, epochs == self.setup.epochs
        if target is None or epochs / self.setup.epochs < SETTLED:
            return None
        if not final and abs(self.meter.exact().share - target) <= FAR * target:
            return None
        try:
            return adjust(self.masks, target, self.meter.exact)
        except SoulDeployError as error:
            if not final:
                return None
            raise SearchStoppedError(str(error), last_good) from error

    def finetune(self, plan: Finetune) -> Iterator[SearchEpoch]:
        """Train on under the hard masks, yielding after each epoch; ends with the best one."""
        self.masks.attach_hard(self.module)
        if plan.reset_optimizer:
            self.optimizer = make_optimizer(self.module, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = plan.learning_rate
        scheduler = make_scheduler(plan.schedule, self.optimizer, plan.epochs)
        best = BestState()
        for epoch in range(plan.epochs):
            start, rate = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
            loss, hits = self._train_epoch(lambda loss: loss, lambda: None)
            if plan.schedule.moves_after(epoch):
                scheduler.step()
            hard = accuracy(self.module, self.data, self.data.validation)
            result = EpochResult(epoch + 1, loss, hits, hard, rate, 0.0)
            measured = self._measure("finetune", result, start)
            best.offer(self.module, measured.result)
            yield measured
        best.restore(self.module)

    def hard_model(self, info: ModelInfo) -> Model:
        """The network with hard masks: pruned weights are zeros, neuron masks beside them."""
        plain = from_module(self.module, info)
        state = dict(plain.state)
        for name, mask in self.masks.weights.items():
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = np.where(mask.keep().cpu().numpy(), weight, np.float32(0))
        keeps = {name: mask.keep().cpu().numpy() for name, mask in self.masks.neurons.items()}
        return replace(plain, state=state, neuron_masks=keeps, alphas=self.masks.alphas())

    def synops(self, model: Model) -> float:
        """SynOps per image of `model` on the fixed sample, the head included."""
        counts = count_model(model, self._sample)
        return sum(layer.synops for layer in counts.values()) / len(self._sample)

    def _measure(self, phase: str, result: EpochResult, start: float) -> SearchEpoch:
        searching = phase == "search"
        self.masks.attach_hard(self.module)
        hard = result.validation_accuracy
        if searching and len(self.masks.parameters()):
            hard = accuracy(self.module, self.data, self.data.validation)
        synops = self.synops(self.hard_model(ModelInfo()))
        connectivity = self.meter.exact()
        if searching:
            self.masks.attach(self.module)
        timed = replace(result, seconds=time.perf_counter() - start)
        heat = (
            next((m.temperature for m in self.masks.weights.values()), 0.0),
            next((m.temperature for m in self.masks.neurons.values()), 0.0),
        )
        return SearchEpoch(
            *(phase, timed, self.lmbda or 0.0, heat),
            *(connectivity, synops, hard),
            _dead(self.module.graph, connectivity, self.meter.empty_class()),
        )

    def optimizers(self) -> list[Optimizer]:
        """The weights' and, if there are masks, the masks'."""
        return [self.optimizer, *([self.mask_optimizer] if self.mask_optimizer else [])]

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last group of batches may be a partial one."""
        batches = -(-len(self.data.train) // self.recipe.batch_size)
        return -(-batches // self.setup.accumulate)

    def _train_epoch(
        self, penalised: Callable[[Tensor], Tensor], after_step: Callable[[], None]
    ) -> tuple[float, float]:
        """Mean task loss and accuracy over the epoch's samples."""
        self.module.train()
        order = torch.randperm(len(self.data.train), generator=self._random)
        batches = torch.split(order, self.recipe.batch_size)
        total, hits = 0.0, 0
        for first in range(0, len(batches), self.setup.accumulate):
            group = batches[first : first + self.setup.accumulate]
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            for done, index in enumerate(group, start=first + 1):
                loss, right = self._backward(index, len(group), penalised)
                total += loss * len(index)
                hits += right
                if self.tick is not None:
                    self.tick(done, len(batches), loss)
            add_l1(self.module, self.recipe.l1)
            for optimizer in self.optimizers():
                optimizer.step()
            after_step()
        self.module.eval()
        return total / len(order), hits / len(order)

    def _backward(
        self, index: Tensor, group: int, penalised: Callable[[Tensor], Tensor]
    ) -> tuple[float, int]:
        """Add a batch's share of the gradients; its task loss and correct samples."""
        batch = self.data.train.select(index)
        images = augmented(batch.images, self.recipe.augment, self._random)
        device = next(self.module.parameters()).device
        labels = batch.labels.to(device)
        images = self.data.normalise(images).to(device)
        task, scores = self.setup.objective.loss(self.module, images, labels)
        whole = penalised(task)
        if not whole.isfinite():
            raise SoulDeployError(
                f"training diverged: the loss is {whole.item()}; lower the learning rate or "
                "penalty_lmbda"
            )
        (whole / group).backward()  # type: ignore[no-untyped-call]
        return task.item(), int((scores.argmax(1) == labels).sum())


class _Control:
    """What changes from step to step of a search: temperature and, with a target, lambda."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self.step = 0
        self.per_epoch = pruning.steps_per_epoch()
        self.total = self.per_epoch * pruning.setup.epochs
        self.interval = max(1, self.total // UPDATES)
        self.steering: LambdaControl | None = None

    def penalised(self, task: Tensor) -> Tensor:
        """The task's loss plus the penalty."""
        pruning = self.pruning
        if not pruning.masks.parameters():
            return task
        target = pruning.setup.target
        if target is not None and self.steering is None:
            balance = balanced_lambda(task, pruning.masks)
            if pruning.lmbda is None:
                pruning.lmbda = BALANCE * balance
            self.steering = LambdaControl(target, pruning.lmbda, balance)
        assert pruning.lmbda is not None, "lambda is only open when there is a target"
        return task + pruning.lmbda * pruning.masks.penalty()

    def after_step(self) -> None:
        """After each optimizer step."""
        self.step += 1
        pruning = self.pruning
        pruning.masks.heat(*pruning.setup.temperature.at(self.step / self.per_epoch))
        if self.steering is None or self.step % self.interval:
            return
        pruning.lmbda = self.steering.update(self.step / self.total, pruning.meter.estimate())
