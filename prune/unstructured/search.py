"""Method U: search for masks of weights and neurons with a penalty, then fine-tune under them.

Shi et al., ICLR 2024 (published code, main.py): the loss is the task's plus
lambda · Σ e_w · sigmoid(beta · alpha_w) + lambda · Σ e_n · sigmoid(beta · alpha_n), with the
constants of `penalty`. Weights and masks have an optimizer each; both start every step from zeroed
gradients. Fine-tuning keeps the masks as they are, without the penalty. The two loops are in
`loops`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from soul_deploy import distributed
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.data.datasets import Data
from soul_deploy.data.sampler import DataOrder, Share, epoch_batches
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.lambda_control import ConnectivityMeter
from soul_deploy.prune.unstructured.masks import Masks, SoftMask
from soul_deploy.prune.unstructured.plan import Search, SearchEpoch, dead_layer
from soul_deploy.training.state import (
    TrainingCursor,
    Tree,
    fill,
    number_of,
    optimizer_state,
    restore_optimizer,
    same_names,
    tree_of,
)
from soul_deploy.training.trainer import (
    OPTIMIZERS,
    EpochResult,
    Tick,
    TrainConfig,
    accuracy,
    add_l1,
    begin_training,
    make_optimizer,
    module_state,
    restore_module,
)

Penalised = Callable[[Tensor, float], Tensor]
"""From the task's loss of a part of a batch, and its weight, to what its gradients are of."""
COUNTED_IMAGES = 32
"""Size of the fixed sample on which SynOps are counted after every epoch."""


class Pruning:
    """A module, its masks and both optimizers, through the search and the fine-tuning."""

    def __init__(
        self,
        module: GraphModule,
        data: Data,
        recipe: TrainConfig,
        search: Search,
        masks: Masks,
        tick: Tick | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        distributed.shared_batch_norm(module)
        self.module, self.data, self.recipe = module, data, recipe
        self.setup, self.masks = search, masks
        self.tick, self.after_step = tick, after_step
        self.optimizer = make_optimizer(module, recipe)
        parameters = masks.parameters()
        make = OPTIMIZERS[search.masks.optimizer]
        self.mask_optimizer = make(parameters, search.masks) if parameters else None
        self.meter = ConnectivityMeter(module, masks)
        self.lmbda = search.lmbda
        self._order = DataOrder(len(data.train), recipe.batch_size, recipe.seed)
        images = data.validation.images[:COUNTED_IMAGES]
        self._sample = data.normalise(images)

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

    def measure(self, phase: str, result: EpochResult) -> SearchEpoch:
        """What is told of an epoch; the module has the phase's gates then."""
        start = time.perf_counter()
        searching = phase == "search"
        self.masks.attach_hard(self.module)
        hard = result.validation_accuracy
        if searching and len(self.masks.parameters()):
            hard = accuracy(self.module, self.data, self.data.validation)
        synops = self.synops(self.hard_model(ModelInfo()))
        connectivity = self.meter.exact()
        if searching:
            self.masks.attach(self.module)
        timed = replace(result, seconds=result.seconds + time.perf_counter() - start)
        heat = (
            next((m.temperature for m in self.masks.weights.values()), 0.0),
            next((m.temperature for m in self.masks.neurons.values()), 0.0),
        )
        place = [result.epoch, self.lmbda or 0.0, *heat]
        distributed.assert_ranks_agree(
            f"{phase} epoch {result.epoch}", self.module, place, self.masks.parameters()
        )
        return SearchEpoch(
            *(phase, timed, self.lmbda or 0.0, heat),
            *(connectivity, synops, hard),
            dead_layer(self.module.graph, connectivity, self.meter.empty_class()),
        )

    def optimizers(self) -> list[Optimizer]:
        """The weights' and, if there are masks, the masks'."""
        return [self.optimizer, *([self.mask_optimizer] if self.mask_optimizer else [])]

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last group of batches may be a partial one."""
        batches = -(-len(self.data.train) // self.recipe.batch_size)
        return -(-batches // self.setup.accumulate)

    def check(self, progress: TrainingCursor, epochs: int) -> None:
        """Raise FileFormatError unless `progress` lies in a phase of so many epochs."""
        progress.check(epochs, self.steps_per_epoch(), len(self.data.train))

    def train_epoch(
        self,
        first_epoch: int,
        progress: TrainingCursor,
        penalised: Penalised,
        after_step: Callable[[], None],
    ) -> None:
        """What is left of the epoch that `progress` is in; `first_epoch`: where its phase began."""
        begin_training(self.module, self.recipe)
        start, size = time.perf_counter() - progress.seconds, self.setup.accumulate
        epoch = first_epoch + progress.epoch
        split, augment = self.data.train, self.recipe.augment
        batches = epoch_batches(split, self._order, augment, epoch, distributed.current())
        while (first := progress.step * size) < len(batches):
            group = range(first, min(first + size, len(batches)))
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            for number in group:
                share = batches[number]
                loss, right = self._backward(share, len(group), penalised)
                progress.loss += loss * share.samples
                progress.hits += right
                if self.tick is not None:
                    self.tick(number + 1, len(batches), loss)
            distributed.current().add_up_learning(self.module, self.masks.parameters())
            add_l1(self.module, self.recipe.l1)
            for optimizer in self.optimizers():
                optimizer.step()
            after_step()
            progress.step += 1
            progress.seconds = time.perf_counter() - start
            if self.after_step is not None:
                self.after_step()
        self.module.eval()

    def finished(self, progress: TrainingCursor, rate: float, validation: float) -> EpochResult:
        """The result of the epoch that `progress` has come to the end of; it moves on."""
        samples = len(self.data.train)
        loss, hits, seconds = progress.loss / samples, progress.hits / samples, progress.seconds
        progress.next_epoch()
        return EpochResult(progress.epoch, loss, hits, validation, rate, seconds)

    def _backward(self, share: Share, group: int, penalised: Penalised) -> tuple[float, int]:
        """Add this process's share of a batch; the whole batch's task loss and correct samples."""
        device = next(self.module.parameters()).device
        labels = share.own.labels.to(device)
        images = self.data.normalise(share.own.images).to(device)
        task, scores = self.setup.objective.loss(self.module, images, labels)
        loss = penalised(task, share.weight)
        mean, right = share.whole(task, scores, labels)
        if not (math.isfinite(mean) and loss.isfinite()):
            raise SoulDeployError(
                f"training diverged: the loss is {loss.item()}; lower the learning rate or "
                "penalty_lmbda"
            )
        (loss / group).backward()  # type: ignore[no-untyped-call]
        return mean, right

    def state(self) -> Tree:
        """Weights, mask parameters, temperatures, moments, lambda."""
        names = ("weights", "masks")
        optimizers = dict(zip(names, map(optimizer_state, self.optimizers()), strict=False))
        return {
            "module": module_state(self.module),
            "alphas": self._alphas(),
            "temperatures": {name: mask.temperature for name, mask in self._named_masks().items()},
            "optimizers": optimizers,
            "lambda": self.lmbda,
            "connectivity_correction": self.meter.correction,
        }

    def restore(self, tree: Tree) -> None:
        """Go on from there. Raises FileFormatError if it is the state of other masks."""
        restore_module(self.module, tree_of(tree, "module"))
        fill(self._alphas(), tree_of(tree, "alphas"), "mask parameters")
        heats = tree_of(tree, "temperatures")
        same_names("temperatures", self._named_masks(), heats)
        for name, mask in self._named_masks().items():
            mask.temperature = number_of(heats, name)
        moments = tree_of(tree, "optimizers")
        for name, optimizer in zip(("weights", "masks"), self.optimizers(), strict=False):
            restore_optimizer(optimizer, tree_of(moments, name))
        self.lmbda = None if tree.get("lambda") is None else number_of(tree, "lambda")
        self.meter.correction = number_of(tree, "connectivity_correction")

    def _named_masks(self) -> dict[str, SoftMask]:
        return {**self.masks.weights, **self.masks.neurons}

    def _alphas(self) -> dict[str, Tensor]:
        return {name: mask.alpha.detach() for name, mask in self._named_masks().items()}
