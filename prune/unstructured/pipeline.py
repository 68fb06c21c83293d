"""Unstructured pruning as a whole: search, hard masks, fine-tuning, removal, tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch

from soul_deploy.analysis.connectivity import weight_shape
from soul_deploy.base.errors import UsageError
from soul_deploy.base.files import digest
from soul_deploy.base.progress import status
from soul_deploy.data.datasets import Data
from soul_deploy.data.given import DataLike
from soul_deploy.ir.graph import Projection, SpikingGraph
from soul_deploy.model.model import Model, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.unstructured import masks as masking
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.finetune import FinetuneLoop
from soul_deploy.prune.unstructured.log import Recorder, note_of
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.prune.unstructured.search import SearchLoop
from soul_deploy.training import train as dense_training
from soul_deploy.training.checkpoint_manager import CheckpointManager, Checkpoints, managed
from soul_deploy.training.device import module_of, prepare_device
from soul_deploy.training.epoch_log import epoch_log
from soul_deploy.training.messages import warn
from soul_deploy.training.state import Bundle
from soul_deploy.training.trainer import Tick, TrainConfig, accuracy, device_of

COMMAND = "prune unstructured"
PHASES = ("search", "finetune")
Kind = Literal["weights", "neurons"]
OnEpoch = Callable[[SearchEpoch], None]
"""Called after each epoch of the search and of the fine-tuning."""


@dataclass(frozen=True)
class LayerMask:
    """The mask of a projection's weights or a population's neurons; `index`: among its kind.

    entries: 0 if it has none; cost: the penalty's coefficient of each of them.
    """

    layer: str
    kind: Kind
    index: int
    entries: int
    cost: float | None


@dataclass(frozen=True)
class MaskPlan:
    """What a search would mask: every projection, then every population."""

    layers: tuple[LayerMask, ...]

    def masked(self, kind: Kind) -> tuple[str, ...]:
        """Names of the layers that get masks of this kind."""
        return tuple(row.layer for row in self.layers if row.kind == kind and row.entries)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        rows = [
            {
                "layer": row.layer,
                "masks": row.kind,
                "index": row.index,
                "entries": row.entries,
                "cost": "" if row.cost is None else f"{row.cost:g}",
            }
            for row in self.layers
        ]
        return {"layers": rows}


def plan_unstructured(
    model: Model, config: SearchConfig = SearchConfig(), *, path: Path | None = None
) -> MaskPlan:
    """What `prune_unstructured` would mask, and what each entry costs; nothing is trained.

    path: the model's file, for messages. Raises UsageError for layers that do not exist or cannot
    be masked, and for a model that was masked already otherwise than by an unstructured search.
    """
    if model.channel_masks or (model.neuron_masks and not model.alphas):
        where = "the model" if path is None else path
        command = f"soul-deploy prune compact {'FILE' if path is None else quote(str(path))}"
        raise UsageError(
            f"{where} is a masked network; start from a dense one, from its compact one "
            f"({command}) if that has no masks left, or from the masked result of an earlier "
            "prune unstructured"
        )
    graph = model.graph
    weights = masking.chosen_weights(graph, config.weight_prune_layers)
    neurons = masking.chosen_neurons(graph, config.neuron_prune_layers)
    masking.require_covered(model.alphas, (*weights, *neurons))
    if config.target_connectivity is not None and not weights:
        raise UsageError("target_connectivity needs weight masks; leave --not_prune_weight out")
    costs, rows = coefficients(graph, config.penalty_coef), []
    kinds: tuple[tuple[Kind, Any, Any, Any], ...] = (
        ("weights", graph.projections, weights, costs.weights),
        ("neurons", graph.populations, neurons, costs.neurons),
    )
    for kind, nodes, chosen, cost in kinds:
        for index, node in enumerate(nodes):
            shape = weight_shape(node) if isinstance(node, Projection) else graph.shapes[node.name]
            entries, each = (prod(shape), cost[node.name]) if node.name in chosen else (0, None)
            rows.append(LayerMask(node.name, kind, index, entries, each))
    return MaskPlan(tuple(rows))


def prune_unstructured(
    model: Model | SpikingGraph,
    data: DataLike,
    config: SearchConfig = SearchConfig(),
    training: TrainConfig = TrainConfig(),
    *,
    device: str = "auto",
    checkpoints: Checkpoints | None = None,
    log: Path | None = None,
    tensorboard: bool = False,
    on_epoch: OnEpoch | None = None,
    on_batch: Tick | None = None,
) -> PruneResult:
    """Prune single weights and neurons of `model` by trainable masks, then remove what died.

    training     how the weights are trained in search and fine-tuning; its epochs are the search's
    log          a file for the table of epochs: after each, the table is written there as JSON
                 lines, and beside it as .csv; tensorboard: also for tensorboard
    on_epoch     called with each SearchEpoch, whose `model` has hard masks

    `model` stays as it is; it may be the masked result of an earlier search, whose masks are then
    trained on. The others are as for `train`. Started by torchrun, all processes prune together,
    each returns the result, and the main one writes. Raises UsageError for settings that do not
    fit, SearchStoppedError, with the last good model, if the search cannot go on, and what `train`
    raises.
    """
    start, place = dense_training.with_weights(model, training.seed), prepare_device(device)
    plan, recorder = plan_unstructured(start, config), Recorder(log, tensorboard=tensorboard)
    given = dense_training.data_for(start, data, training)
    pruning = _pruning(start, given, config, training, plan, place)
    asked = {"recipe": training.recorded(), **config.recorded(training)}
    if checkpoints is None or checkpoints.settings is None:
        own = ("mask_init_factor", "round_to", "residual")
        asked["masking"] = {name: getattr(config, name) for name in own} | plan.to_dict()
        asked["alphas"] = digest(dict(start.alphas))
    manager = managed(PHASES, checkpoints, pruning.module, given, COMMAND, **asked)
    with manager.watching():
        return _Run(pruning, manager, recorder, on_epoch, on_batch).result()


def _pruning(
    start: Model,
    data: Data,
    config: SearchConfig,
    training: TrainConfig,
    plan: MaskPlan,
    device: torch.device,
) -> Pruning:
    """The network and its masks; models of it say how they are made."""
    module = module_of(replace(start, neuron_masks={}), device)
    masks = masking.make_masks(
        module,
        plan.masked("weights"),
        plan.masked("neurons"),
        coefficients(start.graph, config.penalty_coef),
        config.mask_start(training.seed, start.alphas),
    )
    pruning = Pruning(module, data, training, config, masks)
    made = {"command": COMMAND, **config.recorded(training), "accuracy": {}}
    how = dense_training.provenance(start, data, training, training.epochs, **made)
    pruning.info = replace(pruning.info, provenance=how, validity=start.info.validity)
    return pruning


@dataclass(frozen=True)
class _Run:
    """A search that goes its way, and who is told of it."""

    pruning: Pruning
    manager: CheckpointManager
    recorder: Recorder
    on_epoch: OnEpoch | None
    on_batch: Tick | None

    def result(self) -> PruneResult:
        """Train, remove, test."""
        pruning, module = self.pruning, self.pruning.module
        before = pruning.synops(from_module(module, pruning.info))
        accuracies = {"start": self._accuracy(module)}
        self._train()
        status(f"{COMMAND}: removing and testing")
        accuracies["masked"] = self._accuracy(module)
        provenance = {**pruning.info.provenance, "accuracy": dict(accuracies)}
        masked = pruning.hard_model(replace(pruning.info, provenance=provenance))
        plan = compact = None
        if pruning.masks.parameters():
            config = pruning.config
            plan = plan_removal(masked, round_to=config.round_to, residual=config.residual)
            compact = remove(masked, plan)
            accuracies["compact"] = self._accuracy(module_of(compact, device_of(module)))
        return PruneResult(
            masked=masked,
            compact=compact,
            plan=plan,
            history=tuple(self.recorder.rows),
            accuracies=accuracies,
            connectivity=pruning.meter.exact(),
            synops=(before, pruning.synops(masked)),
        )

    def _train(self) -> None:
        """Search and fine-tune; the module has hard masks then."""
        pruning, manager = self.pruning, self.manager
        pruning.after_step = manager.after_step
        search = SearchLoop(pruning)
        if not manager.passed("search"):
            self._follow(search, "search", pruning.training.epochs)
        pruning.masks.attach_hard(pruning.module)
        finetune = pruning.config.finetune
        if finetune is not None:
            self._follow(FinetuneLoop(pruning, finetune), "finetune", finetune.epochs)
        elif pruning.masks.parameters():
            warn(
                "not fine-tuned: the batch norms' running statistics belong to the soft masks of "
                "the search; give --finetune"
            )

    def _follow(self, loop: SearchLoop | FinetuneLoop, label: str, epochs: int) -> None:
        with epoch_log(label, epochs, None, on_batch=self.on_batch) as log:
            self.pruning.tick = log.tick
            parts = Bundle({"loop": loop, "recorder": self.recorder, "log": log})
            with self.manager.loop(label, parts):
                for epoch in loop.run():
                    log.epoch(epoch.result, note_of(epoch))
                    self.recorder.add(epoch)
                    if self.on_epoch is not None:
                        self.on_epoch(epoch)
                    self.manager.after_epoch()

    def _accuracy(self, module: GraphModule) -> float:
        return accuracy(module, self.pruning.data, self.pruning.data.test)
