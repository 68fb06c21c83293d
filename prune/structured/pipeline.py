"""`prune_structured`: a network and data in, its masked and its compact form out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from soul_deploy.base import errors, progress
from soul_deploy.data import given
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.result import OnMasked, PruneResult, finished
from soul_deploy.prune.structured import measurement, sca, selection
from soul_deploy.prune.structured.config import ScaConfig
from soul_deploy.prune.target import UNITS, Target
from soul_deploy.training import train, trainer
from soul_deploy.training.checkpoint_manager import CheckpointManager, Checkpoints
from soul_deploy.training.messages import EpochLog, OnEpoch
from soul_deploy.training.state import Bundle, Tree, number_of

COMMAND = "prune structured"


@dataclass(frozen=True)
class DensePhase:
    """Training before the pruning loop.

    log        a file for its epochs' results, one JSON object a line
    on_result  called with the TrainResult; with None by a run that goes on from a checkpoint behind
               this phase
    """

    epochs: int
    log: Path | None = None
    on_result: Callable[[train.TrainResult | None], None] | None = None


def prune_structured(
    model: Model | SpikingGraph,
    data: given.DataLike,
    config: ScaConfig = ScaConfig(),
    training: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    layers: Sequence[str] | None = None,
    dense: DensePhase | None = None,
    device: str = "auto",
    checkpoints: Checkpoints | None = None,
    log: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_batch: trainer.Tick | None = None,
    on_masked: OnMasked | None = None,
) -> PruneResult:
    """Prune channels by spiking channel activity, then remove them; `model` stays as it is.

    model     a trained network; a graph gets fresh weights, drawn from `training.seed`
    config    what is measured, when masks change, how many channels go, how long the loop is
    training  how weights are learned meanwhile; the phases have epochs of their own
    layers    names of the populations to prune; None: all that can be
    dense     training before the loop, or None
    log       a file for the loop's epochs, one JSON object a line
    on_masked  called with the masked network before removal, which can be refused

    The others are as for `train`. Started by torchrun, all processes prune together, each returns
    the result, and the main one writes. Raises UsageError for layers that cannot be pruned and a
    number of channels that the floors do not leave, TargetError for a target that is not met (after
    `on_masked` with the nearest, unless that is known before any training), and what `train`
    raises.
    """
    start, module, names = _begin(model, config, training, layers, device)
    training = train.decided(training, start.graph)
    work = train.Work(start, module, train.data_read(start, data, training), training)
    run = _Run(work, config, names, dense)
    asked = {"recipe": training.recorded(), "epochs": run.dense_epochs, **run.asked}
    with work.manager(("train", "prune"), checkpoints, COMMAND, **asked).watching() as manager:
        tested = run.dense_accuracy(manager, on_epoch, on_batch)
        epochs = config.schedule.epochs
        with EpochLog("prune", epochs, log, on_epoch=on_epoch, on_batch=on_batch) as told:
            pruning = run.loop(manager, told, tested)
        progress.status(f"{COMMAND}: removing and testing")
        return run.result(tested.value, pruning, told.results(), on_masked)


def _begin(
    model: Model | SpikingGraph,
    config: ScaConfig,
    training: trainer.TrainConfig,
    layers: Sequence[str] | None,
    device: str,
) -> tuple[Model, GraphModule, tuple[str, ...]]:
    """The model with weights, its module on the device, and the populations to prune."""
    place, start = train.prepare_device(device), train.with_weights(model, training.seed)
    train.refuse_searched(start)
    module = train.module_of(start, place)
    names = chosen_layers(start.graph, config, layers)
    measurement.check(module, config, names)
    return start, module, names


def chosen_layers(
    graph: SpikingGraph, config: ScaConfig, layers: Sequence[str] | None
) -> tuple[str, ...]:
    """The populations to prune, in forward order; `layers` None: all that can be.

    Raises UnknownNameError, or UsageError for those that cannot be pruned by channel.
    """
    able = prunable_layers(graph, config)
    names = tuple(node.name for node in graph.populations)
    for name in layers or ():
        errors.require_known("layer", name, names)
    chosen = tuple(name for name in names if name in (able.values() if layers is None else layers))
    refused = [name for name in chosen if name not in able.values()]
    if refused or not chosen:
        raise errors.UsageError(
            f"pruning_nodes: {_unable(refused, names)}; a layer can if its current comes from one "
            "convolution or linear layer of its own, if it belongs to no residual stream (or with "
            "--residual coupled or scatter), and if its channels are not the classes; prune "
            f"unstructured takes any. Valid here, with --residual {config.residual}: "
            f"{', '.join(f'{index} ({name})' for index, name in able.items()) or 'none'}"
        )
    return chosen


def _unable(refused: Sequence[str], names: Sequence[str]) -> str:
    if refused:
        return f"{', '.join(refused)} cannot be pruned by channel"
    return f"no layer of {', '.join(names)} to prune by channel"


def prunable_layers(graph: SpikingGraph, config: ScaConfig) -> dict[int, str]:
    """Index in forward order -> name, of the populations that can be pruned by channel."""
    units = selection.pruning_units(graph, config.residual)
    able = {name for unit in units for name in unit.populations}
    return {i: node.name for i, node in enumerate(graph.populations) if node.name in able}


class _DenseAccuracy:
    """The test accuracy before the loop, which cannot be measured again inside it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state(self) -> Tree:
        return {"test": self.value}

    def restore(self, tree: Tree) -> None:
        self.value = number_of(tree, "test")


@dataclass(frozen=True)
class _Run:
    """All that was asked for, checked, and the module on its way."""

    work: train.Work
    config: ScaConfig
    names: tuple[str, ...]
    dense: DensePhase | None

    @property
    def asked(self) -> dict[str, Any]:
        """What files and checkpoints hold of it."""
        return {"sca": asdict(self.config), "layers": list(self.names)}

    @property
    def dense_epochs(self) -> int:
        return 0 if self.dense is None else self.dense.epochs

    def dense_accuracy(
        self, manager: CheckpointManager, on_epoch: OnEpoch | None, on_batch: trainer.Tick | None
    ) -> _DenseAccuracy:
        """Train the dense network, if that is asked for and still to be done, and test it."""
        result, dense = None, self.dense
        if dense is not None and not manager.passed("train"):
            work = replace(self.work, config=replace(self.work.config, epochs=dense.epochs))
            told = EpochLog("train", dense.epochs, dense.log, on_epoch=on_epoch, on_batch=on_batch)
            with told as log:
                result = work.result(*work.learn(manager, log), command=COMMAND)
        if dense is not None and dense.on_result is not None:
            dense.on_result(result)
        if result is not None:
            return _DenseAccuracy(result.test_accuracy)
        return _DenseAccuracy(0.0 if manager.starts_in("prune") else self.work.accuracy())

    def loop(
        self, manager: CheckpointManager, log: EpochLog, dense: _DenseAccuracy
    ) -> sca.ChannelPruning:
        """Prune; the module ends with its final masks."""
        work = self.work
        pruning = sca.ChannelPruning(
            *(work.module, work.data, work.config, self.config, self.names),
            tick=log.tick,
            after_step=manager.after_step,
        )
        with manager.loop("prune", Bundle({"pruning": pruning, "dense": dense, "log": log})):
            for step in pruning.run():
                # An epoch's results are those before the update of the masks.
                log.epoch(step.result, _told(step, self.config.target))
                manager.after_epoch()
        return pruning

    def result(
        self,
        dense: float,
        pruning: sca.ChannelPruning,
        history: tuple[trainer.EpochResult, ...],
        on_masked: OnMasked | None,
    ) -> PruneResult:
        """Test, remove, test again. Raises TargetError, after `on_masked`, for a target missed."""
        accuracies = {"dense": dense, "masked": self.work.accuracy()}
        synops, spent = pruning.measurement.synops(), pruning.measurement.spent()
        told = {} if spent is None else {"target": spent.to_dict()}
        made = {"command": COMMAND, **self.asked, **told, "accuracy": dict(accuracies)}
        masked = self.work.model(self.work.info("masked", self.dense_epochs, **made))
        if spent is not None and not spent.reached:
            if on_masked is not None:
                on_masked(masked)
            raise measurement.unmet(spent, self.config.guard)
        removal = {"residual": self.config.removed_streams}
        measured = {"history": history, "synops": synops, "spent": spent}
        return finished(self.work, masked, accuracies, removal, on_masked, **measured)


def _told(step: sca.PruneStep, target: Target | None) -> str:
    """What an epoch's line says of the masks set after it."""
    if step.plan is None:
        return ""
    told = f"after it {step.plan.kept} of {step.plan.total} channels stay"
    if target is None or step.cost is None:
        return told
    return f"{told}, {step.cost:,.0f} {UNITS[target.quantity]}"


@dataclass(frozen=True, kw_only=True)
class StructuredPlan:
    """What would be pruned, and when.

    updates   epoch -> channels that stay after its update of the masks, of `channels` in all; ""
              where a target decides
    layers    per population: name, index, whether it is pruned, its channels, how many it keeps at
              least ("" if it is not pruned), how many it would keep now ("" if not known)
    measured  which channels the present weights would keep, and their scores; None: not measured
    costs     what these would cost, if there is a target
    """

    updates: Mapping[int, int | str]
    channels: int
    layers: tuple[tuple[str, int, bool, int, int | str, int | str], ...]
    measured: selection.ChannelPlan | None = None
    costs: measurement.CostPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        names = ("name", "index", "pruned", "channels", "floor", "kept")
        kept = () if self.measured is None else self.measured.layers
        return {
            "updates": [{"epoch": epoch, "kept": kept} for epoch, kept in self.updates.items()],
            "layers": [dict(zip(names, row, strict=True)) for row in self.layers],
            "keep": {layer.name: layer.keep.nonzero()[0].tolist() for layer in kept},
            "scores": {layer.name: layer.score.tolist() for layer in kept},
            "target": None if self.costs is None else self.costs.to_dict(),
        }

    def __repr__(self) -> str:
        last = [*self.updates.values()][-1] or "as many as a target allows"
        return f"StructuredPlan({last} of {self.channels} channels stay)"


def plan_structured(
    model: Model | SpikingGraph,
    data: given.DataLike | None = None,
    config: ScaConfig = ScaConfig(),
    training: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    layers: Sequence[str] | None = None,
    device: str = "auto",
) -> StructuredPlan:
    """What `prune_structured` would prune. Nothing is trained.

    With data, one epoch without learning measures which channels the present weights would keep.
    Raises as `prune_structured`.
    """
    start, module, names = _begin(model, config, training, layers, device)
    graph, measured, costs = start.graph, None, None
    if data is not None:
        loaded = train.data_read(start, data, training)
        weights = sca.measured_weights(module, loaded, training, config, names)
        measured = weights.decide(1.0)
        costs = weights.planned(measured)
    units = config.units(graph, names)
    unit_of = {name: unit.name for unit in units for name in unit.populations}
    kept = {layer.name: layer for layer in measured.layers} if measured else {}
    rows: list[tuple[str, int, bool, int, int | str, int | str]] = []
    for index, node in enumerate(graph.populations):
        pruned, channels = node.name in unit_of, graph.shapes[node.name][0]
        layer = kept.get(unit_of[node.name]) if pruned else None
        floor: int | str = config.guard.floor(channels) if pruned else ""
        stays: int | str = int(layer.keep.sum()) if layer else ("" if pruned else channels)
        rows.append((node.name, index, pruned, channels, floor, stays))
    ratios, total = config.schedule.ratio_after.items(), sum(unit.channels for unit in units)
    updates: dict[int, int | str] = {
        epoch: config.budget(total, ratio).kept if config.target is None else ""
        for epoch, ratio in ratios
    }
    return StructuredPlan(
        updates=updates, channels=total, layers=tuple(rows), measured=measured, costs=costs
    )
