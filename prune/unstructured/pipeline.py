"""Unstructured pruning as a whole: search, hard masks, fine-tuning, removal, tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from soul_deploy.base import errors, progress
from soul_deploy.data.given import DataLike
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.model import Model, from_module
from soul_deploy.prune.delivered import synops_per_sample
from soul_deploy.prune.result import OnMasked, PruneResult, finished
from soul_deploy.prune.unstructured import budget, loss
from soul_deploy.prune.unstructured import masks as masking
from soul_deploy.prune.unstructured.baselines import BaselineLoop
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.log import Recorder, note_of
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.prune.unstructured.search import FinetuneLoop, SearchLoop
from soul_deploy.training import checkpoint_manager, messages, state, train, trainer

COMMAND = "prune unstructured"
PHASES = ("search", "finetune")
Kind = Literal["weights", "neurons"]
Loop = SearchLoop | BaselineLoop | FinetuneLoop
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
        names = ("layer", "masks", "index", "entries", "cost")
        rows = [
            (
                row.layer,
                row.kind,
                row.index,
                row.entries,
                "" if row.cost is None else f"{row.cost:g}",
            )
            for row in self.layers
        ]
        return {"layers": [dict(zip(names, row, strict=True)) for row in rows]}


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
        raise errors.UsageError(
            f"{where} is a masked network; start from a dense one, from its compact one "
            f"({command}) if that has no masks left, or from the masked result of an earlier "
            "prune unstructured"
        )
    graph = model.graph
    weights = masking.chosen("weight_prune_layers", config.weight_prune_layers, graph.projections)
    searching = config.method == "search"
    neurons = masking.chosen_neurons(graph, config.neuron_prune_layers if searching else ())
    masking.require_covered(model.alphas, (*weights, *neurons))
    if config.target is not None and not weights:
        needed = f"{config.target} needs weight masks"
        raise errors.UsageError(f"{needed}; leave --not_prune_weight out")
    costs, rows = loss.coefficients(graph, config.cost_rule), []
    kinds: tuple[tuple[Kind, Any, Any, Any], ...] = (
        ("weights", graph.projections, weights, costs.weights),
        ("neurons", graph.populations, neurons, costs.neurons),
    )
    for kind, nodes, chosen, cost in kinds:
        for index, node in enumerate(nodes):
            shape = node.weight_shape if kind == "weights" else graph.shapes[node.name]
            entries, each = (prod(shape), cost[node.name]) if node.name in chosen else (0, None)
            rows.append(LayerMask(node.name, kind, index, entries, each))
    return MaskPlan(tuple(rows))


def prune_unstructured(
    model: Model | SpikingGraph,
    data: DataLike,
    config: SearchConfig = SearchConfig(),
    training: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    device: str = "auto",
    checkpoints: checkpoint_manager.Checkpoints | None = None,
    log: Path | None = None,
    tensorboard: bool = False,
    test_start: bool = True,
    on_epoch: OnEpoch | None = None,
    on_batch: trainer.Tick | None = None,
    on_masked: OnMasked | None = None,
) -> PruneResult:
    """Prune single weights and neurons of `model` by trainable masks, then remove what died.

    training     how the weights are trained in search and fine-tuning; its epochs are the search's,
                 its objective is that of both (Soul and the authors: MSE)
    log          the table of epochs goes to its .jsonl and .csv; tensorboard: also for that
    test_start   measure the start's test accuracy; fresh weights of a graph never are tested
    on_epoch     called with each SearchEpoch, whose `model` has hard masks
    on_masked    called with the masked network before removal, which can be refused

    `model` stays as it is; it may be the masked result of an earlier search, whose masks are then
    trained on. The others are as for `train`. Started by torchrun, all processes prune together,
    each returns the result, and the main one writes. Raises UsageError for settings that do not
    fit, SearchStoppedError if the search cannot go on, and what `train` raises.
    """
    if not isinstance(model, Model):
        budget.refuse_fresh(config.target)
    start, place = train.with_weights(model, training.seed), train.prepare_device(device)
    training = train.decided(training, start.graph)
    plan, recorder = plan_unstructured(start, config), Recorder(log, tensorboard=tensorboard)
    module = train.module_of(replace(start, neuron_masks={}), place)
    work = train.Work(start, module, train.data_read(start, data, training), training)
    pruning = _pruning(work, config, plan)
    asked = {"recipe": training.recorded(), **config.recorded(training)}
    own = ("mask_init_factor", "round_to", "residual")
    asked["masking"] = {name: getattr(config, name) for name in own} | plan.to_dict()
    manager = work.manager(PHASES, checkpoints, COMMAND, **asked)
    with manager.watching():
        tested = {"start": work.accuracy()} if test_start and isinstance(model, Model) else {}
        return _Run(work, pruning, manager, recorder, on_epoch, on_batch).result(tested, on_masked)


def _pruning(work: train.Work, config: SearchConfig, plan: MaskPlan) -> Pruning:
    """The network and its masks; models of it say how they are made."""
    graph, training = work.start.graph, work.config
    masks = masking.make_masks(
        *(work.module, plan.masked("weights"), plan.masked("neurons")),
        loss.coefficients(graph, config.cost_rule),
        config.mask_start(training.seed, work.start.alphas),
    )
    pruning = Pruning(work.module, work.data, training, config, masks)
    made = {"command": COMMAND, **config.recorded(training), "accuracy": {}}
    pruning.info = work.info(pruning.info.stage, training.epochs, **made)
    return pruning


@dataclass(frozen=True)
class _Run:
    """A search that goes its way, and who is told of it."""

    work: train.Work
    pruning: Pruning
    manager: checkpoint_manager.CheckpointManager
    recorder: Recorder
    on_epoch: OnEpoch | None
    on_batch: trainer.Tick | None

    def result(self, accuracies: dict[str, float], on_masked: OnMasked | None) -> PruneResult:
        """Train, remove, test; accuracies: those measured before."""
        work, pruning = self.work, self.pruning
        before = self._synops(from_module(work.module, pruning.info))
        self._train()
        progress.status(f"{COMMAND}: removing and testing")
        accuracies["masked"] = work.accuracy()
        provenance = {**pruning.info.provenance, "accuracy": dict(accuracies)}
        masked = pruning.hard_model(replace(pruning.info, provenance=provenance))
        limit = pruning.budget
        removal = {name: getattr(pruning.config, name) for name in ("round_to", "residual")}
        return finished(
            *(work, masked, accuracies, removal if pruning.masks.parameters() else None, on_masked),
            history=tuple(self.recorder.rows),
            connectivity=pruning.meter.exact(),
            synops=(before, self._synops(masked)),
            spent=None if limit is None else limit.spent,
        )

    def _synops(self, model: Model) -> float:
        return synops_per_sample(model, self.work.data, trainer.device_of(self.work.module))

    def _train(self) -> None:
        """Search and fine-tune; the module has hard masks then."""
        pruning, manager = self.pruning, self.manager
        pruning.after_step = manager.after_step
        searching = pruning.config.method == "search"
        search = SearchLoop(pruning) if searching else BaselineLoop(pruning)
        if not manager.passed("search"):
            self._follow(search, "search", pruning.training.epochs)
        pruning.masks.attach_hard(pruning.module)
        finetune = pruning.config.finetune
        if finetune is not None:
            self._follow(FinetuneLoop(pruning, finetune), "finetune", finetune.epochs)
        elif searching and pruning.masks.parameters():
            messages.warn(
                "not fine-tuned: the batch norms' running statistics belong to the soft masks of "
                "the search; give --finetune"
            )

    def _follow(
        self, loop: SearchLoop | BaselineLoop | FinetuneLoop, label: str, epochs: int
    ) -> None:
        with messages.EpochLog(label, epochs, None, on_batch=self.on_batch) as log:
            self.pruning.tick = log.tick
            parts = state.Bundle({"loop": loop, "recorder": self.recorder, "log": log})
            with self.manager.loop(label, parts):
                for epoch in loop.run():
                    log.epoch(epoch.result, note_of(epoch))
                    self.recorder.add(epoch)
                    if self.on_epoch is not None:
                        self.on_epoch(epoch)
                    self.manager.after_epoch()
