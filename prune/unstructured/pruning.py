"""Shi et al., ICLR 2024 (published code, main.py): a network and its masks while both are trained.

The loss of the search is the task's plus lambda · Σ e_w · sigmoid(beta · alpha_w) +
lambda · Σ e_n · sigmoid(beta · alpha_n), with the coefficients of `loss`. Weights and masks have an
optimizer each; both start every step from zeroed gradients. Fine-tuning keeps the masks as they
are, without the penalty.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_deploy import distributed
from soul_deploy.analysis.connectivity import Connectivity
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import brief
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.data import datasets, sampler
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, Stage, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import reaches_readout
from soul_deploy.prune.unstructured.budget import Budget, Subject
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.connectivity_meter import ConnectivityMeter
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.prune.unstructured.threshold import Adjustment
from soul_deploy.training import state as saved
from soul_deploy.training import trainer
from soul_deploy.training.state import TrainingCursor, Tree, tree_of
from soul_deploy.training.trainer import EpochResult, Tick, TrainConfig

Penalised = Callable[[Tensor, float], Tensor]
"""From the task's loss of a part of a batch, and its weight, to what its gradients are of."""
COUNTED_IMAGES = 32
"""Size of the fixed sample on which SynOps are counted after every epoch."""


@brief
@dataclass(frozen=True, kw_only=True)
class SearchEpoch:
    """An epoch of the search or of the fine-tuning, measured at its end.

    result: its validation accuracy is with soft masks while searching. synops: per image, on a
    fixed sample, under the hard masks. adjustment: the threshold's correction after this epoch.
    model: the network under its hard masks.
    """

    phase: str
    result: EpochResult
    lmbda: float
    temperature: tuple[float, float]
    connectivity: Connectivity
    synops: float
    hard_accuracy: float
    model: Model = field(compare=False)
    dead: str | None = None
    """What the output needs and the hard masks leave nothing of: a layer, or a class's neurons."""
    adjustment: Adjustment | None = None


class Pruning:
    """A module, its masks and both optimizers, through the search and the fine-tuning."""

    def __init__(
        self,
        module: GraphModule,
        data: datasets.Data,
        training: TrainConfig,
        config: SearchConfig,
        masks: Masks,
        *,
        tick: Tick | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        distributed.shared_batch_norm(module)
        self.module, self.data, self.training = module, data, training
        self.config, self.masks = config, masks
        self.objective = training.objective.decided(module.graph)
        self.tick, self.after_step = tick, after_step
        self.optimizer = trainer.make_optimizer(module, training)
        parameters, how = masks.parameters(), config.mask_training(training)
        make = trainer.OPTIMIZERS[how.optimizer]
        self.mask_optimizer = make(parameters, how) if parameters else None
        self.meter = ConnectivityMeter(module, masks)
        self.lmbda = config.first_lmbda
        stage: Stage = "masked" if parameters else "dense"
        kind = data.input_kind
        self.info = ModelInfo(stage, data.normalization, data.classes, input_kind=kind)
        self._order = sampler.DataOrder(len(data.train), training.batch_size, training.seed)
        self.budget: Budget | None = None
        if config.target is not None:
            subject = Subject(module, data, masks, self.meter, self.hard_model)
            self.budget = Budget(config.target, subject)
        self._sample = data.normalise(data.validation.images[:COUNTED_IMAGES])

    def hard_model(self, info: ModelInfo | None = None) -> Model:
        """The network with hard masks: pruned weights are zeros, neuron masks beside them."""
        plain = from_module(self.module, info or self.info)
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

    def measure(
        self, phase: str, result: EpochResult, adjustment: Adjustment | None = None
    ) -> SearchEpoch:
        """What is told of an epoch; the module has the phase's masks then."""
        start = time.perf_counter()
        searching = phase == "search"
        self.masks.attach_hard(self.module)
        hard = result.validation_accuracy
        if searching and self.masks.parameters():
            hard = trainer.accuracy(self.module, self.data, self.data.validation)
        model, connectivity = self.hard_model(), self.meter.exact()
        synops = self.synops(model)
        if searching:
            self.masks.attach(self.module)
        heat = self.masks.temperatures()
        when, place = f"{phase} epoch {result.epoch}", [result.epoch, self.lmbda or 0.0, *heat]
        distributed.assert_ranks_agree(when, self.module, place, self.masks.parameters())
        return SearchEpoch(
            phase=phase,
            result=replace(result, seconds=result.seconds + time.perf_counter() - start),
            lmbda=self.lmbda or 0.0,
            temperature=heat,
            connectivity=connectivity,
            synops=synops,
            hard_accuracy=hard,
            model=model,
            dead=self.dead(),
            adjustment=adjustment,
        )

    def dead(self) -> str | None:
        """What the output needs and the hard masks leave nothing of."""
        return dead_layer(self.module.graph, self.meter.exact(), self.meter.empty_class())

    @torch.no_grad()
    def responds(self) -> bool:
        """Whether the class scores, as the module is, differ between any two validation images.

        Every process looks at all of them, so that all decide the same.
        """
        split, first, module = self.data.validation, None, self.module.eval()
        for index in torch.split(torch.arange(len(split)), trainer.EVALUATION_BATCH):
            images = self.data.normalise(split.select(index).images)
            scores = module(images.to(trainer.device_of(module)))
            first = scores[:1] if first is None else first
            if (scores != first).any():
                return True
        return False

    def optimizers(self) -> list[Optimizer]:
        """The weights' and, if there are masks, the masks'."""
        return [self.optimizer, *([self.mask_optimizer] if self.mask_optimizer else [])]

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last group of batches may be a partial one."""
        batches = -(-len(self.data.train) // self.training.batch_size)
        return -(-batches // self.config.accumulate_step)

    def check(self, cursor: TrainingCursor, epochs: int) -> None:
        """Raise FileFormatError unless `cursor` lies in a phase of so many epochs."""
        cursor.check(epochs, self.steps_per_epoch(), len(self.data.train))

    def train_epoch(
        self,
        first_epoch: int,
        cursor: TrainingCursor,
        penalised: Penalised,
        after_step: Callable[[], None],
    ) -> None:
        """What is left of the epoch that `cursor` is in; `first_epoch`: where its phase began."""
        trainer.begin_training(self.module, self.training)
        start, size = time.perf_counter() - cursor.seconds, self.config.accumulate_step
        epoch = first_epoch + cursor.epoch
        split, augment = self.data.train, self.training.augment
        batches = sampler.EpochBatches(split, self._order, augment, epoch, distributed.current())
        while (first := cursor.step * size) < len(batches):
            group = range(first, min(first + size, len(batches)))
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            for number in group:
                share = batches[number]
                loss, right = self._backward(share, len(group), penalised)
                cursor.loss += loss * share.samples
                cursor.hits += right
                if self.tick is not None:
                    self.tick(number + 1, len(batches), loss)
            distributed.current().add_up_learning(self.module, self.masks.parameters())
            trainer.add_l1(self.module, self.training.l1)
            for optimizer in self.optimizers():
                optimizer.step()
            after_step()
            cursor.step += 1
            cursor.seconds = time.perf_counter() - start
            if self.after_step is not None:
                self.after_step()
        self.module.eval()

    def finished(self, cursor: TrainingCursor, rate: float, validation: float) -> EpochResult:
        """The result of the epoch that `cursor` has come to the end of; it moves on."""
        samples = len(self.data.train)
        loss, hits, seconds = cursor.loss / samples, cursor.hits / samples, cursor.seconds
        cursor.next_epoch()
        return EpochResult(cursor.epoch, loss, hits, validation, rate, seconds)

    def _backward(
        self, share: sampler.Share, group: int, penalised: Penalised
    ) -> tuple[float, int]:
        """Add this process's share of a batch; the whole batch's task loss and correct samples."""
        device = next(self.module.parameters()).device
        labels = share.own.labels.to(device)
        images = self.data.normalise(share.own.images).to(device)
        outputs = self.module.forward_observed(images, None, per_step=self.objective.tet)
        over_time = self.module.graph.readout.over_time
        task, scores = self.objective.loss(outputs, labels, over_time)
        loss = penalised(task, share.weight)
        mean, right = share.whole(task, scores, labels)
        if not (math.isfinite(mean) and loss.isfinite()):
            told = f"training diverged: the loss is {loss.item()}"
            raise SoulDeployError(f"{told}; lower the learning rate or penalty_lmbda")
        (loss / group).backward()  # type: ignore[no-untyped-call]
        return mean, right

    def state(self) -> Tree:
        """Weights, mask parameters, temperatures, moments, lambda."""
        names = ("weights", "masks")
        optimizers = dict(zip(names, map(saved.optimizer_state, self.optimizers()), strict=False))
        return {
            "module": trainer.module_state(self.module),
            "alphas": self._alphas(),
            "temperatures": {name: mask.temperature for name, mask in self.masks.named().items()},
            "optimizers": optimizers,
            "lambda": self.lmbda,
            "spending": {} if self.budget is None else self.budget.spending.state(),
        }

    def restore(self, tree: Tree) -> None:
        trainer.restore_module(self.module, tree_of(tree, "module"))
        saved.fill(self._alphas(), tree_of(tree, "alphas"), "mask parameters")
        heats = tree_of(tree, "temperatures")
        saved.same_names("temperatures", self.masks.named(), heats)
        for name, mask in self.masks.named().items():
            mask.temperature = saved.number_of(heats, name)
        moments = tree_of(tree, "optimizers")
        for name, optimizer in zip(("weights", "masks"), self.optimizers(), strict=False):
            saved.restore_optimizer(optimizer, tree_of(moments, name))
        self.lmbda = None if tree.get("lambda") is None else saved.number_of(tree, "lambda")
        if self.budget is not None:
            self.budget.spending.restore(tree_of(tree, "spending"))

    def _alphas(self) -> dict[str, Tensor]:
        return {name: mask.alpha.detach() for name, mask in self.masks.named().items()}


def dead_layer(
    graph: SpikingGraph, connectivity: Connectivity, empty_class: int | None
) -> str | None:
    """A layer without synapses, if nothing goes around it (as it does around a residual block)."""
    empty = [layer.projection for layer in connectivity.layers if layer.live == 0]
    for i, name in enumerate(empty):
        if not reaches_readout(graph, empty[: i + 1]):
            return name
    return None if empty_class is None else f"class {empty_class}"
