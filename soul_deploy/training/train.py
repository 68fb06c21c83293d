"""`train`: a network and data in, the best epoch's network out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from soul_deploy.base import errors, progress, tables
from soul_deploy.data import datasets, given
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training import checkpoint_manager, state, trainer
from soul_deploy.training.device import module_of, prepare_device
from soul_deploy.training.epoch_log import EpochLog, OnEpoch, epoch_log


@dataclass(frozen=True, kw_only=True)
class TrainResult(tables.Shown):
    """A trained network: the epoch with the highest validation accuracy.

    history: one result per epoch. test_accuracy: the share of the test images that `model`
    classifies correctly, 0 to 1.
    """

    model: Model
    best: trainer.EpochResult
    history: tuple[trainer.EpochResult, ...]
    test_accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without weights."""
        return {
            "best_epoch": self.best.epoch,
            "validation_accuracy": self.best.validation_accuracy,
            "test_accuracy": self.test_accuracy,
            "epochs": [asdict(result) for result in self.history],
        }

    def parts(self) -> list[tables.Table | str]:
        """A row per epoch, and the test accuracy."""
        columns = ["epoch", "loss", "training", "validation"]
        rows = [
            (e.epoch, e.loss, f"{e.train_accuracy:.2%}", f"{e.validation_accuracy:.2%}")
            for e in self.history
        ]
        tested = f"Test accuracy of epoch {self.best.epoch}: {self.test_accuracy:.2%}"
        return [tables.Table("Training", columns, rows), tested]

    def __repr__(self) -> str:
        best = self.best
        return (
            f"TrainResult(epoch {best.epoch} of {len(self.history)}; accuracy: validation "
            f"{best.validation_accuracy:.2%}, test {self.test_accuracy:.2%})"
        )


def train(
    model: Model | SpikingGraph,
    data: given.DataLike,
    config: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    device: str = "auto",
    checkpoints: checkpoint_manager.Checkpoints | None = None,
    log: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_batch: trainer.Tick | None = None,
) -> TrainResult:
    """Train on from the weights of `model`, which stays as it is.

    model        a graph gets fresh weights, drawn from `config.seed`
    data         what `as_data` takes; the best epoch is chosen on the validation split, the test
                 split is used once, at the end
    device       "auto" (a GPU if there is one), "cpu" or "cuda"
    checkpoints  where the run's state is kept, so that a run that was stopped can go on; with them
                 SIGTERM and Ctrl-C end the training after the present step
    log          a file for the epochs' results, one JSON object a line
    on_epoch     called with each EpochResult
    on_batch     called with (batches done, batches of the epoch, loss)

    Started by torchrun, all processes train together, each returns the result, and the main one
    writes. Messages go to the logger "soul_deploy". Raises what `as_data` and `prepare_device`
    raise, InterruptedRunError after a signal, SoulDeployError for a loss that is not finite.
    """
    place, start = prepare_device(device), with_weights(model, config.seed)
    loaded = data_for(start, data, config)
    module = module_of(start, place)
    asked = {"recipe": config.recorded(), "epochs": config.epochs}
    manager = checkpoint_manager.managed(("train",), checkpoints, module, loaded, "train", **asked)
    with (
        manager.watching(),
        epoch_log("train", config.epochs, log, on_epoch=on_epoch, on_batch=on_batch) as told,
    ):
        history, best = train_module(module, loaded, config, manager, told)
        progress.status("train: testing")
        made = {"command": "train", "best_epoch": best.epoch}
        return trained(start, module, loaded, config, history, best, made)


def with_weights(model: Model | SpikingGraph, seed: int) -> Model:
    """The model; of a graph, one with fresh weights drawn from `seed`."""
    if isinstance(model, Model):
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return from_module(GraphModule(model), ModelInfo())


def data_for(model: Model, data: given.DataLike, config: trainer.TrainConfig) -> datasets.Data:
    """The data as `as_data` reads them. Raises UsageError if `config` cannot move their images."""
    loaded = given.as_data(data, model=model)
    if config.augment != "none" and len(loaded.input_shape) != 3:
        raise errors.UsageError(
            f"augment {config.augment} moves images (C, H, W); these samples are "
            f"{loaded.input_shape}: leave it out"
        )
    return loaded


def train_module(
    module: GraphModule,
    data: datasets.Data,
    config: trainer.TrainConfig,
    manager: checkpoint_manager.CheckpointManager,
    log: EpochLog,
) -> tuple[tuple[trainer.EpochResult, ...], trainer.EpochResult]:
    """Train in place; `module` ends with the best epoch's weights. Returns all epochs and it."""
    best, history = trainer.BestState(), trainer.History()
    training = trainer.Training(module, data, config, tick=log.tick, after_step=manager.after_step)
    whole = state.Bundle({"training": training, "best": best, "history": history, "log": log})
    with manager.loop("train", whole):
        for result in training.run():
            best.offer(module, result)
            history.results.append(result)
            log.epoch(result)
            manager.after_epoch()
    return tuple(history.results), best.take(module)


def trained(
    start: Model,
    module: GraphModule,
    data: datasets.Data,
    config: trainer.TrainConfig,
    history: tuple[trainer.EpochResult, ...],
    best: trainer.EpochResult,
    made: Mapping[str, Any],
) -> TrainResult:
    """Test the trained module. made: what else its model says about how it was made."""
    test = trainer.accuracy(module, data, data.test)
    tested = {"validation": best.validation_accuracy, "test": test}
    how = provenance(start, data, config, len(history), **made, accuracy=tested)
    model = with_info(start, module, data, start.info.stage, how)
    return TrainResult(model=model, best=best, history=history, test_accuracy=test)


def provenance(
    start: Model, data: datasets.Data, config: trainer.TrainConfig, epochs: int, **made: Any
) -> dict[str, Any]:
    """What a model says about how it was made, as JSON data; the start's own goes first."""
    return {**start.info.provenance, "data": data.name, **how_trained(config, epochs), **made}


def how_trained(config: trainer.TrainConfig, epochs: int) -> dict[str, Any]:
    """The recipe, and the software that followed it."""
    packages = ("soul-deploy", "torch", "numpy")
    return {
        "recipe": config.recorded(),
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def with_info(
    start: Model, module: GraphModule, data: datasets.Data, stage: Any, how: Mapping[str, Any]
) -> Model:
    """A Model of what became of `start` in `module`; its masks of single neurons stay."""
    info = replace(
        start.info,
        stage=stage,
        normalization=data.normalization,
        classes=data.classes,
        provenance=how,
        input_kind=data.input_kind,
    )
    return replace(from_module(module, info), neuron_masks=start.neuron_masks)
